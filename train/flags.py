"""Parses the command line of a run: a config file, and flags that change its fields."""

import argparse
import dataclasses
import math
import os
import pathlib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro

from pipeline.arguments import check_path, named_arguments
from pipeline.bundled import presets
from pipeline.config_checks import ConfigError, all_problems, deferred, is_typed, marks_of
from pipeline.errors import UserError, nearest_name
from pipeline.flag_help import PartsFlag, part_flags
from pipeline.parts.part import Part
from pipeline.parts.part_files import load_parts, run_file
from pipeline.terminal import program
from train.train_config import TrainConfig

DEFAULT_VARIANT = "default"


@dataclasses.dataclass(frozen=True)
class Flags:
    """Finetunes Octo on dataset directories."""

    config: Annotated[TrainConfig, tyro.conf.FlagConversionOff]
    """Config of the run; the defaults come from the config file."""
    name: str | None = None
    """Name of the run; the same as --config.name."""
    resume: bool = False
    """Resume the run in save_dir from its last checkpoint, or from its start if it was killed
    before the first one."""
    dry_run: bool = False
    """Check config, data, weights and machine, print all findings, and train nothing."""
    step_s: float = 0.1
    """With --dry_run: the seconds of a training step, to check that the loader keeps up with it."""
    overwrite: bool = False
    """Delete the run in save_dir and start from scratch."""
    new_mixture: bool = False
    """With --resume: continue with other datasets, weights or filters than before; the run's
    checkpoints record the change."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run in save_dir records,
    such as my_parts.py; may be given several times. Those of the config file are known."""
    verbose: bool = False
    """Print the full config and description of the run; its directory has them anyway."""
    debug: bool = False
    """Show a traceback with an error."""
    unchanged: tyro.conf.Suppress[TrainConfig | None] = None
    """Config as in its file, without changes by flags."""


@dataclasses.dataclass(frozen=True)
class _FlagsOfNoFile(Flags):
    """Finetunes Octo on dataset directories.

    With --config FILE, --help explains every field of its config; each field is a flag.
    """

    config: Annotated[str, tyro.conf.arg(metavar="FILE[:VARIANT]", help_behavior_hint="")] = ""  # pyright: ignore[reportIncompatibleVariableOverride]
    """Config file, such as configs/my_robot.py, or a preset; after a colon, one of its variants,
    such as libero_vggt:demo."""


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Parses a command line: `--config FILE[:VARIANT]`, then any field of the config.

    Raises:
      UserError: No config file is given, or it or its variant does not exist; or the config has
        problems, which are all listed together. A dry run prints them instead.
      SystemExit: With code 2, after a message: a flag does not exist or does not parse.
    """
    # Abbreviations would let `--conf` hide a field of the config.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    # The file is read first, because its config has the defaults of all other flags.
    known, rest = parser.parse_known_args(arguments)
    if known.config is None:
        if {"-h", "--help"} & set(rest):
            tyro.cli(
                _FlagsOfNoFile,
                prog=program("train.run"),
                args=["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
                use_underscores=True,
            )
        raise UserError(
            where="command line",
            expected="--config FILE[:VARIANT]",
            found=" ".join(arguments) or "nothing",
            remedy="Try `octograin train --config libero_vggt:demo`.",
        )
    config = _read_variant(known.config)
    if not is_typed(config):
        # Flags cannot fix what is of another type, nor show it as a default.
        _check_config(config, known.config)
    # Deferred, so that a dry run can list all problems of a config at once.
    with deferred():
        flags = tyro.cli(
            Flags,
            prog=f"{program('train.run')} --config {known.config}",
            args=rest,
            default=Flags(config, unchanged=config),
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.AvoidSubcommands),
            use_underscores=True,
            registry=part_flags(),
        )
        if flags.name is not None:
            config = dataclasses.replace(flags.config, name=flags.name)
            flags = dataclasses.replace(flags, config=config)
    # After the config, so that files which it has imported are not executed again.
    load_parts(*flags.parts)
    if not flags.dry_run:
        _check_config(flags.config, known.config)
        if flags.step_s != Flags.step_s:
            raise UserError(
                where="command line",
                expected="--step_s with --dry_run",
                found="it alone",
                remedy="A run measures its training steps: leave the flag out.",
            )
    return flags


def check_flags(flags: Flags) -> None:
    """Raises a `UserError` if flags contradict each other."""
    if flags.new_mixture and not flags.resume:
        raise UserError(
            where="command line",
            expected="--new_mixture with --resume",
            found="it alone",
            remedy="A new run may use any mixture: leave the flag out.",
        )
    if not 0 < flags.step_s < math.inf:
        raise UserError(
            where="--step_s",
            expected="a finite number of seconds above 0",
            found=str(flags.step_s),
            remedy="Give the time of a training step, such as 0.1.",
        )


@named_arguments("dataclasses.replace changes fields of the config.")
def load_config(name: str | os.PathLike[str]) -> TrainConfig:
    """Loads the config of `FILE[:VARIANT]` from the file's `VARIANTS`; the default is `default`.

    Raises:
      UserError: The file or variant does not exist, or the config has problems, which are all
        listed together. Problems of the file's other variants are ignored.
    """
    check_path(name, "load_config, name", "FILE, FILE:VARIANT or a preset such as libero_vggt:demo")
    config = _read_variant(os.fspath(name))
    _check_config(config, os.fspath(name))
    return config


def _check_config(config: TrainConfig, name: str) -> None:
    found = all_problems(config)
    if found:
        flag = f"--config.{found[0].field}".partition(",")[0]
        raise ConfigError(f"--config {name}", found, f" in the file or by flags such as {flag}")


def _read_variant(name: str) -> TrainConfig:
    """Loads a config like `load_config`, but accepts one with problems."""
    file, _, variant = name.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        # A file wins over a preset of its name.
        path = presets().get(file, path)
    if not path.is_file():
        raise UserError(
            where=f"--config {name}",
            expected="a config file, or the name of a preset",
            found="no such file or preset",
            remedy=f"The presets are {', '.join(presets())}; a file is named with its .py.",
        )
    variants = _read_variants(path)
    wanted = variant or DEFAULT_VARIANT
    if wanted not in variants:
        raise UserError(
            where=f"--config {name}",
            expected=f"a variant among {', '.join(map(str, variants))}",
            found=wanted,
            remedy=f"Write, for example, --config {file}:"
            f"{nearest_name(wanted, variants) or next(iter(variants))}.",
        )
    if not isinstance(variants[wanted], TrainConfig):
        raise _unusable_file(path, f"{type(variants[wanted]).__name__} as {wanted}")
    return variants[wanted]


def _read_variants(path: pathlib.Path) -> dict[str, Any]:
    try:
        # The file's own configs may have problems that flags fix.
        with deferred():
            found = vars(run_file(path))
    except SystemExit as error:
        # `SystemExit` is no `Exception`.
        raise _unusable_file(path, f"a call of exit({error.code!r})") from error
    except Exception as error:  # the file's own code may raise anything
        text = " ".join(str(error).split()) + _nearest_field(error)
        raise _unusable_file(path, f"{type(error).__name__}{text and f': {text}'}") from error
    if "VARIANTS" not in found:
        raise _unusable_file(path, "no VARIANTS")
    variants = found["VARIANTS"]
    if not isinstance(variants, dict) or not variants:
        raise _unusable_file(path, f"VARIANTS = {' '.join(repr(variants)[:80].split())}")
    return variants


def _nearest_field(error: Exception) -> str:
    """Names the field that is spelled most like an unknown one of a config; empty if none is."""
    found = re.search(
        r"^(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if not isinstance(error, TypeError) or found is None:
        return ""
    kinds = {kind.__name__: kind for kind in _config_types(TrainConfig)}
    trace = error.__traceback__
    while trace is not None:
        # A class of the file's own, or one that it imports: the last call has it by its name.
        kinds |= {found[1]: trace.tb_frame.f_globals.get(found[1], kinds.get(found[1]))}
        trace = trace.tb_next
    fields = getattr(kinds.get(found[1]), "__dataclass_fields__", ())
    nearest = nearest_name(found[2], fields)
    # Python 3.13 suggests one by itself.
    is_named = "Did you mean" in str(error)
    return f"; did you mean {nearest}?" if nearest and not is_named else ""


def _config_types(hint: Any) -> Iterator[type]:
    """Yields the dataclasses of a config: its own and those of its fields, however nested."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
        for of_field in typing.get_type_hints(hint, include_extras=True).values():
            yield from _config_types(of_field)
            marks = [mark for _, mark in marks_of(of_field) if isinstance(mark, Part)]
            yield from (plain for mark in marks for plain in mark.plain)
    for part in typing.get_args(hint):
        yield from _config_types(part)


def _unusable_file(path: pathlib.Path, found: str) -> UserError:
    return UserError(
        where=f"--config {path}",
        expected="Python that defines VARIANTS, a dictionary of TrainConfigs by name",
        found=found,
        remedy="Fix the file; --debug shows where it fails.",
    )
