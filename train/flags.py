"""The command line of a run: a config from its file, and flags that change it."""

import argparse
import dataclasses
import pathlib
import runpy
from collections.abc import Sequence
from typing import Annotated

import tyro

from pipeline.errors import UserError
from train.config import TrainConfig

DEFAULT_VARIANT = "default"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Finetunes Octo on dataset directories."""

    config: Annotated[TrainConfig, tyro.conf.FlagConversionOff]
    """The run; the defaults are the config file's."""
    name: str | None = None
    """Name of the run, as --config.name."""
    resume: bool = False
    """Go on with the run in save_dir from its last checkpoint, or from its start where it was
    killed before the first one."""
    dry_run: bool = False
    """Check config, data, weights and machine, say all that is found, and train nothing."""
    overwrite: bool = False
    """Delete the run in save_dir and start anew."""
    new_mixture: bool = False
    """With resume: go on with other datasets, weights or filters than the run had so far; its
    checkpoints record the change."""
    debug: bool = False
    """Show a traceback with an error."""
    unchanged: tyro.conf.Suppress[TrainConfig | None] = None
    """The config as its file has it."""


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Flags from a command line: `--config FILE[:VARIANT]`, then any field of the config.

    Raises:
      UserError: Where no config file is named, or it or its variant does not exist.
      SystemExit: With code 2 after a message: a flag that does not exist, does not parse, or does
        not fit the others.
    """
    parser = argparse.ArgumentParser(
        prog="python -m train.run",
        description="Finetunes Octo on dataset directories.",
        epilog="The fields of a config: python -m train.run --config FILE --help",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="such as configs/libero.py")
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        if {"-h", "--help"} & set(rest):
            parser.print_help()
            raise SystemExit(0)
        raise UserError(
            where="command line",
            expected="--config FILE[:VARIANT]",
            found=" ".join(arguments) or "nothing",
            remedy="Try `python -m train.run --config configs/libero_vggt.py:demo`.",
        )
    config = load_config(known.config)
    flags = tyro.cli(
        Flags,
        prog=f"python -m train.run --config {known.config}",
        args=rest,
        default=Flags(config, unchanged=config),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
        use_underscores=True,
    )
    if flags.name is None:
        return flags
    return dataclasses.replace(flags, config=dataclasses.replace(flags.config, name=flags.name))


def check_flags(flags: Flags) -> None:
    """Raises `UserError` where flags ask for what cannot be together."""
    if flags.new_mixture and not flags.resume:
        raise UserError(
            where="command line",
            expected="--new_mixture with --resume",
            found="it alone",
            remedy="A new run needs no leave for its mixture: leave it out.",
        )


def load_config(name: str) -> TrainConfig:
    """The config of `FILE[:VARIANT]`: an entry of the file's `VARIANTS`, by default `default`.

    Raises:
      UserError: Where there is no such file or variant.
    """
    file, _, variant = name.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(
            where=f"--config {name}",
            expected="a config file",
            found="none at that path",
            remedy="Those that come with the project lie in configs/.",
        )
    variants = _read_variants(path)
    if (variant or DEFAULT_VARIANT) not in variants:
        raise UserError(
            where=f"--config {name}",
            expected=f"a variant among {', '.join(variants)}",
            found=variant,
            remedy=f"Write for example --config {file}:{next(iter(variants))}.",
        )
    return variants[variant or DEFAULT_VARIANT]


def _read_variants(path: pathlib.Path) -> dict[str, TrainConfig]:
    try:
        return runpy.run_path(str(path))["VARIANTS"]
    except ValueError as error:
        raise UserError(
            where=f"--config {path}",
            expected="settings that fit each other",
            found=str(error),
            remedy="Mend them in the file; --debug shows where.",
        ) from error
    except (SyntaxError, ImportError, LookupError, NameError, TypeError) as error:
        raise UserError(
            where=f"--config {path}",
            expected="Python that defines VARIANTS, a dictionary of TrainConfigs by name",
            found=f"{type(error).__name__}: {error}",
            remedy="Mend the file; --debug shows where it fails.",
        ) from error
