"""What lies in a directory, to compare two of them or one at two times."""

import hashlib
import pathlib

from pipeline.data.manifest import TRANSFORMED_NAME


def contents(directory: pathlib.Path) -> dict[str, str]:
    """The SHA-256 of every file below a directory, by path.

    Statistics that a loader keeps beside a dataset are left out: a test that trained on the same
    dataset before may have added them.
    """
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != TRANSFORMED_NAME
    }
