"""JSON objects whose last field `checksum` covers all others, so that changes are detected.

Earlier releases wrote objects without it; they are read without a check.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from pipeline.errors import DataError
from pipeline.files import (
    dump_json,
    json_checksum,
    parse_json,
    read_text,
    to_json_values,
    write_text_atomically,
)

CHECKSUM = "checksum"
_NUM_DIGITS = 32
_EXPECTED = "a JSON object"


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Adds their checksum to JSON fields, unless one of them already has that name."""
    # The name is taken where a dataset's path is `checksum`.
    return dict(values) if CHECKSUM in values else {**values, CHECKSUM: json_checksum(values)}


def write_json(path: epath.PathLike, values: Mapping[str, Any]) -> None:
    """Writes JSON fields with their checksum atomically: readers see the old or the new file."""
    write_text_atomically(path, dump_json(with_checksum(values)))


def to_json_line(value: object) -> str:
    """Formats a dataclass or mapping with its checksum as one line of JSON; NaN becomes null."""
    # NaN is no JSON; other parsers reject it.
    return json.dumps(with_checksum(_finite(to_json_values(value))), allow_nan=False) + "\n"


def read_json(path: pathlib.Path, *, remedy: str) -> dict[str, Any]:
    """Reads the fields that `write_json` wrote.

    Raises:
      DataError: The file cannot be read, is no JSON object, or does not match its checksum.
    """
    text = read_text(path, expected=_EXPECTED, remedy=remedy)
    return from_json(text, where=str(path), remedy=remedy)


def from_json(text: str | bytes, *, where: str, remedy: str) -> dict[str, Any]:
    """Parses the fields of a JSON object, checks them against the checksum, and removes it.

    Raises:
      DataError: The text is no JSON object, or does not match its checksum.
    """
    values = parse_json(text, where=where, expected=_EXPECTED, remedy=remedy)
    if not isinstance(values, dict):
        found = type(values).__name__
        raise DataError(where=where, expected=_EXPECTED, found=found, remedy=remedy)
    # The last field, in case corruption changed its name.
    name = CHECKSUM if CHECKSUM in values else next(reversed(values), "")
    checksum = values.get(name)
    if not isinstance(checksum, str):  # none, or a dataset whose path is `checksum`
        return values
    content = {key: value for key, value in values.items() if key != name}
    if name == CHECKSUM:
        check_checksum(checksum, content, where=where, remedy=remedy)
        return content
    # A right checksum under another name: this field's own name is corrupt.
    if len(checksum) == _NUM_DIGITS and checksum == json_checksum(content):  # its name has changed
        raise _changed("the checksum as its last field", name, where=where, remedy=remedy)
    return values


def check_checksum(checksum: object, content: Any, *, where: str, remedy: str) -> None:
    """Compares JSON values with the checksum that was written with them.

    Raises:
      DataError: They differ.
    """
    found = json_checksum(content)
    if found != checksum:
        expected = f"content with the checksum {checksum} that was written with it"
        raise _changed(expected, found, where=where, remedy=remedy)


def _changed(expected: str, found: str, *, where: str, remedy: str) -> DataError:
    found = f"{found}: the file is corrupt or was edited"
    return DataError(where=where, expected=expected, found=found, remedy=remedy)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
