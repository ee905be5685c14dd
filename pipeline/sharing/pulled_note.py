"""`hub.json`: says of a pulled dataset directory where it is from, and what was left there."""

import dataclasses
import json
from collections.abc import Mapping

from etils import epath

from pipeline.checksums import check_checksum, write_json
from pipeline.data.manifest import FILE_NAME
from pipeline.errors import DataError
from pipeline.files import from_json_text, parse_json, read_text, to_json_values

NOTE_NAME = "hub.json"
_REMEDY = "Restore it, or remove it: then the directory counts as one that was not pulled."


@dataclasses.dataclass(frozen=True)
class PulledNote:
    """The repository and commit that a dataset directory was pulled from."""

    address: str
    """`hf://datasets/owner/name@commit`."""
    columns: Mapping[str, tuple[str, ...]]
    """Keys of the features of each column that the commit has, pulled or not."""

    def column_of(self, name: str) -> str | None:
        """The column that has a name, or the feature of that name; None if there is none."""
        if name in self.columns:
            return name
        wanted = (name, f"observation/{name}")
        return next((c for c, keys in self.columns.items() if {*keys} & {*wanted}), None)


def write_note(directory: epath.Path, note: PulledNote) -> None:
    """Writes the note of a directory atomically."""
    write_json(directory / NOTE_NAME, to_json_values(note))


def read_note(directory: epath.Path) -> PulledNote | None:
    """Reads the note of a directory; None if it has none.

    Raises:
      DataError: The note is corrupt.
    """
    path = directory / NOTE_NAME
    if not path.exists():
        return None
    where, expected = str(path), "a JSON object"
    text = read_text(path, expected=expected, remedy=_REMEDY)
    values = parse_json(text, where=where, expected=expected, remedy=_REMEDY)
    check_checksum(values.pop("checksum", None), values, where=where, remedy=_REMEDY)
    return from_json_text(PulledNote, json.dumps(values), where=where, remedy=_REMEDY)


def not_pulled(directory: epath.Path, key: str, where: str) -> DataError | None:
    """The error of a feature that the repository has and a pulled directory has not.

    Args:
      directory: A dataset directory, pulled or not.
      key: The feature's key.
      where: The directory, as the user named it.

    Returns:
      None if the directory was not pulled, or its repository has no such feature either.
    """
    note = read_note(directory)
    column = None if note is None else note.column_of(key)
    if note is None or column is None or not (directory / FILE_NAME).exists():
        return None
    return DataError(
        where=where,
        expected=f"a feature {key}",
        found=f"that its column {column} was not pulled",
        remedy=f"Pull it: octograin pull {note.address} {directory} --columns {column}",
    )
