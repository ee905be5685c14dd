"""Writes the file of an exported policy."""

import pathlib
import zipfile
from collections.abc import Mapping

from pipeline.errors import UserError
from pipeline.files import sync, temporary_path, writing
from train.exported.policy_file import ARRAYS, META, PROGRAM

# The earliest date that a zip knows: members do not depend on the time of the export.
_DATE = (1980, 1, 1, 0, 0, 0)
_READABLE = 0o644 << 16


def check_free(path: pathlib.Path, *, overwrite: bool) -> None:
    """Raises a `UserError` if a policy cannot be exported to a path."""
    found, remedy = "", "Name another file."
    if path.is_dir():
        found = "a directory"
    elif path.exists() and not _is_export(path):
        # First: --overwrite is no remedy for a file that is not an export.
        found = "a file that is no exported policy"
    elif path.exists() and not overwrite:
        found, remedy = "an exported policy", "Replace it with --overwrite."
    elif not path.parent.is_dir():
        found, remedy = f"no directory {path.parent}", "Make it, or name another one."
    if found:
        raise UserError(where=str(path), expected="a file to create", found=found, remedy=remedy)


def _is_export(path: pathlib.Path) -> bool:
    try:
        with zipfile.ZipFile(path) as opened:
            return {META, PROGRAM} <= {*opened.namelist()}
    except zipfile.BadZipFile:
        return False


def write_file(path: pathlib.Path, members: Mapping[str, str | bytes]) -> None:
    """Writes a zip so that a reader sees all of it or the previous file.

    Args:
      path: The file to write.
      members: The content of its members, by name.

    Raises:
      UserError: The system refused a write.
    """
    temporary = temporary_path(path)
    with writing(path):
        try:
            with zipfile.ZipFile(temporary, "w") as opened:
                for name, content in members.items():
                    info = zipfile.ZipInfo(name, _DATE)
                    # Parameters hardly shrink.
                    is_array = name.startswith(ARRAYS)
                    info.compress_type = zipfile.ZIP_STORED if is_array else zipfile.ZIP_DEFLATED
                    info.external_attr = _READABLE
                    opened.writestr(info, content)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
