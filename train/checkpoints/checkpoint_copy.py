"""Copies a checkpoint to be published: whole, or what a policy needs of it."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pipeline.errors import UserError
from pipeline.files import dump_json, sync, temporaries, temporary_path, writing
from pipeline.terminal import first_few
from train.checkpoints.checkpoint_checksums import digest_arrays, digest_json
from train.checkpoints.checkpoint_store import DIRECTORY, SavedStep, check_arrays
from train.checkpoints.packed_arrays import FILE_NAME, write_arrays
from train.update.train_state import averaged_params

Precision = Literal["float32", "float16"]
"""Type of the parameters in a copy."""
_LARGEST = float(np.finfo(np.float16).max)
_MARKER = "commit_success.txt"
"""File of Orbax that says that a folder is complete, and where it was written."""


@dataclasses.dataclass(frozen=True)
class PolicyCheckpoint:
    """What a policy needs of a checkpoint: without the optimizer state, in a few files."""

    step: int
    """Training steps taken."""
    values: dict[str, Any]
    """JSON values of its items `config`, `datasets` and `loader`."""
    params: dict[str, Any]
    """Nested numpy arrays: the averaged parameters if the run averages them."""
    vocabulary: np.ndarray
    """Bytes of the SentencePiece model, uint8."""

    @classmethod
    def of(cls, saved: SavedStep, dtype: Precision = "float32") -> "PolicyCheckpoint":
        """Reads a checkpoint, and compares its content with its checksums.

        Args:
          saved: The checkpoint.
          dtype: Type of the parameters; with float32 they are as they are stored.

        Raises:
          UserError: It cannot be read, or a parameter is out of float16's range.
          DataError: It is corrupt.
        """
        values = {name: json.loads(saved.text(name)) for name in ("config", "datasets", "loader")}
        params, ema = saved.arrays("state", "params", "ema")
        (vocabulary,) = saved.arrays("vocabulary", "bytes")
        params = averaged_params(params, ema, saved.config().frozen)
        if dtype == "float16":
            params = in_half_precision(params, where=str(saved.path))
        return cls(saved.step, values, params, vocabulary)

    def write(
        self, run_directory: pathlib.Path, replaced: Sequence[pathlib.Path] = ()
    ) -> pathlib.Path:
        """Writes it as a checkpoint of a run directory, which appears once it is complete.

        Args:
          run_directory: The run directory.
          replaced: Checkpoints in it that are deleted once this one is complete.

        Returns:
          The directory of the checkpoint.

        Raises:
          UserError: It cannot be written.
        """
        path = run_directory.absolute() / DIRECTORY / str(self.step)
        trees = {"state": {"params": self.params}, "vocabulary": {"bytes": self.vocabulary}}
        digests = {
            "arrays": digest_arrays(trees),
            "values": {name: digest_json(value) for name, value in self.values.items()},
        }
        with _appearing(path, replaced) as unfinished:
            for name, value in {**self.values, "digests": digests}.items():
                (unfinished / name).mkdir(parents=True)
                (unfinished / name / "metadata").write_text(dump_json(value))
            write_arrays(unfinished / FILE_NAME, trees)
        return path


def in_half_precision(params: Mapping[str, Any], *, where: str) -> Any:
    """Returns nested parameters with float16 instead of float32.

    Rounding changes a value by at most 2^-11 of it, bfloat16's by 2^-9; below 6e-5, by at most
    3e-8.

    Raises:
      UserError: Values are beyond +-65504, or NaN.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    large = {name: one for name, one in flat.items() if one.dtype == np.float32}
    # "not <=" is true of NaN as well.
    beyond = [name for name, one in large.items() if not np.abs(one).max(initial=0) <= _LARGEST]
    if beyond:
        raise UserError(
            where=where,
            expected=f"parameters within +-{_LARGEST:.0f}, the range of float16",
            found=f"others in {first_few(beyond, most=3)}",
            remedy="Leave out --dtype float16.",
        )
    halves = {name: one.astype(np.float16) for name, one in large.items()}
    return unflatten_dict(flat | halves, sep="/")


def copy_checkpoint(
    run_directory: pathlib.Path,
    destination: pathlib.Path,
    step: int | None = None,
    *,
    with_optimizer: bool = False,
    dtype: Precision = "float32",
) -> pathlib.Path:
    """Copies a checkpoint after comparing its content with its checksums.

    Args:
      run_directory: The run directory.
      destination: The directory of the new run, without this checkpoint.
      step: The checkpoint's training step; None: the last checkpoint.
      with_optimizer: Whether the copy has the optimizer state, without which no run resumes from
        it. With AdamW it is twice the size of the trained parameters.
      dtype: Type of the parameters; with float32 they are as they are stored.

    Returns:
      The directory of the copy.

    Raises:
      UserError: The checkpoint does not exist, cannot be read or has no optimizer state to copy; a
        parameter is out of float16's range; float16 is wanted with the optimizer state; or the copy
        cannot be written.
      DataError: The checkpoint is corrupt.
    """
    if with_optimizer and dtype != "float32":
        raise UserError(
            where="--dtype",
            expected="float32 with --with_optimizer, for the run to be resumed",
            found=dtype,
            remedy="Leave out one of the two.",
        )
    saved = SavedStep(run_directory, step)
    if not with_optimizer:
        return PolicyCheckpoint.of(saved, dtype).write(destination)
    copy = destination.absolute() / DIRECTORY / str(saved.step)
    for item in ("config", "datasets", "loader"):
        saved.text(item)
    saved.check_resumable()
    check_arrays(run_directory, saved.step)
    with _appearing(copy) as unfinished:
        shutil.copytree(saved.path, unfinished)
        _rename_in_markers(unfinished, saved.step)
    return copy


@contextlib.contextmanager
def _appearing(path: pathlib.Path, replaced: Sequence[pathlib.Path] = ()) -> Iterator[pathlib.Path]:
    """Yields a folder to make, which gets the name `path` at a normal end of the block.

    It takes the place of folders beside it. At another end nothing of it stays, and they do. What a
    killed process left beside it is deleted.

    Raises:
      UserError: It cannot be written.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    unfinished = temporary_path(path)
    with writing(path):
        for left in temporaries(path.parent) if path.parent.is_dir() else ():
            shutil.rmtree(left)
        try:
            yield unfinished
            # Content before the name, or a crash leaves a checkpoint of empty files.
            for part in (unfinished, *unfinished.rglob("*")):
                sync(part)
            with _aside(replaced):
                unfinished.rename(path)
            for folder in (path, *made):
                sync(folder.parent)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            for folder in made:
                # It is missing, or another process has put something into it.
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


@contextlib.contextmanager
def _aside(folders: Sequence[pathlib.Path]) -> Iterator[None]:
    """Renames folders inside the block, as one that is not empty cannot be replaced in one step.

    At a normal end they are deleted, at another they get their names back.
    """
    names = {folder: temporary_path(folder) for folder in folders}
    try:
        for folder, name in names.items():
            folder.rename(name)
        yield
    except BaseException:
        for folder, name in names.items():
            if name.exists():
                name.rename(folder)
        raise
    for name in names.values():
        shutil.rmtree(name)


def _rename_in_markers(copy: pathlib.Path, step: int) -> None:
    """Replaces the paths of this machine in a copy, which others will read, by those in the run."""
    for marker in copy.rglob(_MARKER):
        place = pathlib.PurePosixPath(DIRECTORY, str(step), marker.parent.relative_to(copy))
        marker.write_text(f"Checkpoint commit was successful to {place}")
