"""`octograin export RUN DST --to policy`: writes a checkpoint as a small directory to hand on.

DST/checkpoints/N/arrays.safetensors     parameters and vocabulary
DST/checkpoints/N/config/metadata        JSON, as in every checkpoint; datasets and loader as well
DST/checkpoints/N/digests/metadata       checksums of all of it
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import jax
import tyro

from pipeline.errors import UserError, user_errors_exit
from pipeline.files import temporary_of
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.hub.hub_transfer import size
from pipeline.parts.part_files import load_parts
from pipeline.terminal import count, log_to_stderr, program, show
from train.checkpoints.checkpoint_copy import PolicyCheckpoint, Precision
from train.checkpoints.checkpoint_store import (
    DIRECTORY,
    Checkpoint,
    SavedStep,
    read_checkpoint,
)
from train.checkpoints.fetched_run import find_run
from train.checkpoints.hub_paths import CONFIG_NAME
from train.checkpoints.packed_arrays import FILE_NAME as PACKED_NAME
from train.checkpoints.pulled_run import NOTE_NAME
from train.checkpoints.relative_paths import shortest_names, with_relative_paths
from train.exported.rounding_check import describe_difference
from train.policy.policy import read_run


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes one checkpoint of a run, without its optimizer state, as a small directory to hand on.

    Every command that takes RUN takes this directory too, except `octograin report`; no run resumes
    from it. Absolute paths become relative.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to create, or one without checkpoints."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    dtype: Precision = "float32"
    """Type of the stored parameters. With float16 they take half the space, and the difference in
    actions is printed; the policy computes in the run's own type."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the checkpoint of an exported policy in DST; other files in it stay."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and writes the directory."""
    log_to_stderr()
    with user_errors_exit():
        name = program("train.exported.policy_command")
        args = tyro.cli(joined_help(Args), prog=name, use_underscores=True)
        load_parts(*args.parts)
        dst = pathlib.Path(args.dst)
        replaced = _replaced(dst, overwrite=args.overwrite)
        before = read_run(args.run, args.step)
        saved = SavedStep(find_run(args.run, before.step).directory, before.step)
        names = export_directory(saved, dst, args.dtype, replaced)
        after = read_checkpoint(dst)
        show(describe(dst, after, args.dtype, names))
        if args.dtype == "float16":
            show(describe_difference(before, after))
        show(f"try it: octograin serve {dst}\n")


def _replaced(directory: pathlib.Path, *, overwrite: bool) -> list[pathlib.Path]:
    """Returns the checkpoints in a destination that are replaced, after checking that they may be.

    Raises:
      UserError: It is a file, or has checkpoints and `overwrite` is false or they are not those of
        an exported policy.
    """
    there, found, remedy = _checkpoints(directory), "", "Name another, or move it away."
    if directory.exists() and not directory.is_dir():
        found = "a file"
    elif there and not _is_exported(directory, there):
        # First: --overwrite is no remedy for a run.
        found = f"{DIRECTORY} that are not of an exported policy"
    elif there and not overwrite:
        found, remedy = "an exported policy", "Replace it with --overwrite, or name another."
    if found:
        expected = "a new directory, or one without checkpoints"
        raise UserError(where=str(directory), expected=expected, found=found, remedy=remedy)
    return there


def _is_exported(directory: pathlib.Path, checkpoints: list[pathlib.Path]) -> bool:
    """Returns whether checkpoints have what an export writes, and are not of a pulled run."""
    is_run = any((directory / name).exists() for name in (CONFIG_NAME, NOTE_NAME))
    return not is_run and all(
        path.name.isdecimal() and not path.is_symlink() and (path / PACKED_NAME).is_file()
        for path in checkpoints
    )


def _checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns what a directory has as checkpoints, without what a killed export left."""
    folder = directory / DIRECTORY
    if not folder.is_dir():
        return [folder] if folder.exists() else []
    return [path for path in folder.iterdir() if temporary_of(path.name) is None]


def export_directory(
    saved: SavedStep,
    directory: pathlib.Path,
    dtype: Precision,
    replaced: Sequence[pathlib.Path] = (),
) -> dict[str, str]:
    """Writes what a policy needs of a checkpoint as the only checkpoint of a directory.

    Args:
      saved: The checkpoint.
      directory: The directory, which is created if it is missing.
      dtype: Type of the stored parameters.
      replaced: Checkpoints in the directory that are deleted once the new one is complete.

    Returns:
      The name that each absolute path has now.

    Raises:
      UserError: The checkpoint cannot be read, a parameter is out of float16's range, two paths
        of datasets would become one, or the directory cannot be written.
      DataError: The checkpoint is corrupt.
    """
    policy = PolicyCheckpoint.of(saved, dtype)
    names = shortest_names(policy.values)
    values = with_relative_paths(policy.values, names)
    dataclasses.replace(policy, values=values).write(directory, replaced)
    return names


def describe(
    directory: pathlib.Path, checkpoint: Checkpoint, dtype: Precision, names: Mapping[str, str]
) -> str:
    """Returns what was written, as lines."""
    files = [path for path in (directory / DIRECTORY).rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))
    lines = [
        f"policy: {directory}, training step {checkpoint.step}, {num_parameters:,} parameters as "
        f"{dtype}; {count(len(files), 'file')}, {size(num_bytes)}",
        *(f"path: {path} is now {name}" for path, name in names.items()),
    ]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
