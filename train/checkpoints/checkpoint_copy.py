"""Copies a checkpoint to be published: whole, or without what a policy does not need."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from pipeline.files import writing
from train.checkpoints.checkpoint_store import DIRECTORY, SavedStep, array_handler, check_arrays

_OF_A_POLICY: tuple[str, ...] = ("params", "ema")
"""What a policy reads of the training state."""
_MARKER = "commit_success.txt"
"""File of Orbax that says that a folder is complete, and where it was written."""


def copy_checkpoint(
    run_directory: pathlib.Path,
    destination: pathlib.Path,
    step: int | None = None,
    *,
    with_optimizer: bool = False,
) -> pathlib.Path:
    """Copies a checkpoint after comparing its content with its checksums.

    Without the optimizer state its arrays are written again, since all arrays of a checkpoint share
    files. They stay bitwise identical, with the checksums that they had.

    Args:
      run_directory: The run directory.
      destination: The directory of the new run, without this checkpoint.
      step: The checkpoint's training step; None: the last checkpoint.
      with_optimizer: Whether the copy has the optimizer state, without which no run resumes from
        it. With AdamW it is twice the size of the trained parameters.

    Returns:
      The directory of the copy.

    Raises:
      UserError: The checkpoint does not exist, cannot be read or has no optimizer state to copy; or
        the copy cannot be written.
      DataError: The checkpoint is corrupt.
    """
    saved = SavedStep(run_directory, step)
    copy = destination.absolute() / DIRECTORY / str(saved.step)
    for item in ("config", "datasets", "loader"):
        saved.text(item)
    if with_optimizer:
        saved.check_resumable()
        check_arrays(run_directory, saved.step)
        with writing(copy):
            shutil.copytree(saved.path, copy)
            _rename_in_markers(copy, destination)
        return copy
    saved.arrays("vocabulary", "bytes")
    arrays = dict(zip(_OF_A_POLICY, saved.arrays("state", *_OF_A_POLICY), strict=True))
    with writing(copy):
        # Neither the state nor the checksums, which are of more arrays than the copy has.
        shutil.copytree(saved.path, copy, ignore=lambda *_: {"state", "digests"})
        _write_state(copy / "state", arrays)
        if (saved.path / "digests").is_dir():
            _write_digests(saved.path / "digests", copy / "digests")
        _rename_in_markers(copy, destination)
    return copy


def _rename_in_markers(copy: pathlib.Path, destination: pathlib.Path) -> None:
    """Replaces the paths of this machine in a copy, which others will read, by those in the run."""
    for marker in copy.rglob(_MARKER):
        place = marker.parent.relative_to(destination.absolute()).as_posix()
        marker.write_text(f"Checkpoint commit was successful to {place}")


def _write_state(directory: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    directory.mkdir()
    handler, path = array_handler(), epath.Path(directory)
    handler.save(path, args=ocp.args.PyTreeSave(arrays))
    handler.finalize(path)


def _write_digests(source: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies the checksums of what a policy's checkpoint has."""
    shutil.copytree(source, copy)
    digests = json.loads((source / "metadata").read_text())
    kept = ("vocabulary/", *(f"state/{name}/" for name in _OF_A_POLICY))
    arrays = {path: of for path, of in digests["arrays"].items() if path.startswith(kept)}
    (copy / "metadata").write_text(json.dumps({**digests, "arrays": arrays}))
