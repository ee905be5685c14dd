"""`hub.json`: says of a pulled run directory where its checkpoints are from."""

import dataclasses
import pathlib

from pipeline.checksums import read_json, write_json
from pipeline.hub.hub_address import Repository

NOTE_NAME = "hub.json"
_REMEDY = "Remove it: then the directory counts as one that was not pulled."


@dataclasses.dataclass(frozen=True)
class PulledRun:
    """The repository and commit that a run directory was pulled from."""

    address: str
    """`hf://owner/name@commit`."""
    steps: tuple[int, ...]
    """Training steps of the checkpoints of that commit."""


def note_pull(directory: pathlib.Path, pinned: Repository, steps: list[int]) -> None:
    """Records in a directory where it was pulled from."""
    write_json(directory / NOTE_NAME, {"address": str(pinned), "steps": steps})


def read_pull(directory: pathlib.Path) -> PulledRun | None:
    """Returns where a run directory was pulled from; None if it was not.

    Raises:
      DataError: The note is corrupt.
    """
    path = directory / NOTE_NAME
    if not path.exists():
        return None
    values = read_json(path, remedy=_REMEDY)
    return PulledRun(values["address"], tuple(values["steps"]))
