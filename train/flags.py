"""The command line of a run: a config from its file, and flags that change it."""

import argparse
import dataclasses
import pathlib
import runpy
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from pipeline.checks import all_problems, deferred
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
    """Continue with the run in save_dir from its last checkpoint, or from its start where it was
    killed before the first one."""
    dry_run: bool = False
    """Check config, data, weights and machine, say all that is found, and train nothing."""
    overwrite: bool = False
    """Delete the run in save_dir and start from scratch."""
    new_mixture: bool = False
    """With resume: continue with other datasets, weights or filters than the run had so far; its
    checkpoints record the change."""
    debug: bool = False
    """Show a traceback with an error."""
    unchanged: tyro.conf.Suppress[TrainConfig | None] = None
    """The config as its file has it."""


@dataclasses.dataclass(frozen=True)
class _FlagsOfNoFile(Flags):
    """Finetunes Octo on dataset directories.

    With --config FILE, --help explains every field of its config, each of which is a flag.
    """

    config: Annotated[str, tyro.conf.arg(metavar="FILE[:VARIANT]", help_behavior_hint="")] = ""  # pyright: ignore[reportIncompatibleVariableOverride]
    """Config file and, after a colon, a variant of it, such as configs/libero_vggt.py:demo."""


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Flags from a command line: `--config FILE[:VARIANT]`, then any field of the config.

    Raises:
      UserError: Where no config file is named, it or its variant does not exist, or, unless it is
        a dry run, which lists them, the config has problems; all of these together.
      SystemExit: With code 2 after a message: a flag that does not exist or does not parse.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        if {"-h", "--help"} & set(rest):
            tyro.cli(
                _FlagsOfNoFile,
                prog="python -m train.run",
                args=["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
                use_underscores=True,
            )
        raise UserError(
            where="command line",
            expected="--config FILE[:VARIANT]",
            found=" ".join(arguments) or "nothing",
            remedy="Try `python -m train.run --config configs/libero_vggt.py:demo`.",
        )
    config = _read_variant(known.config)
    with deferred():
        flags = tyro.cli(
            Flags,
            prog=f"python -m train.run --config {known.config}",
            args=rest,
            default=Flags(config, unchanged=config),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
            use_underscores=True,
        )
        if flags.name is not None:
            config = dataclasses.replace(flags.config, name=flags.name)
            flags = dataclasses.replace(flags, config=config)
    if not flags.dry_run:
        _check_config(flags.config, known.config)
    return flags


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
      UserError: Where there is no such file or variant, or it has problems: all of them together.
        Those of the file's other variants do not matter.
    """
    config = _read_variant(name)
    _check_config(config, name)
    return config


def _check_config(config: TrainConfig, name: str) -> None:
    found = all_problems(config)
    if found:
        raise UserError(
            where=f"--config {name}",
            expected="settings that fit each other",
            found="; ".join(found),
            remedy="Change them in the file or by flags.",
        )


def _read_variant(name: str) -> TrainConfig:
    """As `load_config`, whatever problems the config has."""
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
    wanted = variant or DEFAULT_VARIANT
    if wanted not in variants:
        raise UserError(
            where=f"--config {name}",
            expected=f"a variant among {', '.join(map(str, variants))}",
            found=wanted,
            remedy=f"Write for example --config {file}:{next(iter(variants))}.",
        )
    if not isinstance(variants[wanted], TrainConfig):
        raise _unusable_file(path, f"{type(variants[wanted]).__name__} as {wanted}")
    return variants[wanted]


def _read_variants(path: pathlib.Path) -> dict[str, Any]:
    try:
        with deferred():
            found = runpy.run_path(str(path))
    except SystemExit as error:
        raise _unusable_file(path, f"a call of exit({error.code!r})") from error
    except Exception as error:  # whatever the file's own code raises
        text = " ".join(str(error).split())
        raise _unusable_file(path, f"{type(error).__name__}{text and f': {text}'}") from error
    if "VARIANTS" not in found:
        raise _unusable_file(path, "no VARIANTS")
    variants = found["VARIANTS"]
    if not isinstance(variants, dict) or not variants:
        raise _unusable_file(path, f"VARIANTS = {' '.join(repr(variants)[:80].split())}")
    return variants


def _unusable_file(path: pathlib.Path, found: str) -> UserError:
    return UserError(
        where=f"--config {path}",
        expected="Python that defines VARIANTS, a dictionary of TrainConfigs by name",
        found=found,
        remedy="Fix the file; --debug shows where it fails.",
    )
