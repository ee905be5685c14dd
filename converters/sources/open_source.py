"""Opening a source: its format is found by what lies there."""

import dataclasses
import importlib

from etils import epath

from converters.sources.source import Source
from pipeline.bundled import local_path
from pipeline.files import open_path


@dataclasses.dataclass(frozen=True)
class SourceFormat:
    """A format, by the files that a directory of it has."""

    name: str
    """In words, such as `RLDS`."""
    globs: tuple[str, ...]
    """Files of which at least one lies in its directories; or that may be named themselves."""
    module: str
    """The module with its opener, imported only where there is such a source."""
    opener: str
    """Function of (path, split or None) that returns a `Source`."""

    def holds(self, path: epath.Path) -> bool:
        """Whether a directory or file looks like one of this format."""
        if path.is_dir():
            return any(next(iter(path.glob(glob)), None) is not None for glob in self.globs)
        return path.exists() and any(path.match(glob) for glob in self.globs)

    def open(self, path: epath.Path, split: str | None) -> Source:
        """Opens a source; raises what its opener does."""
        return getattr(importlib.import_module(self.module), self.opener)(path, split)


RLDS = SourceFormat(
    "RLDS", ("features.json", "*/features.json"), "converters.rlds.rlds_source", "open_rlds"
)
FORMATS = (RLDS,)
"""The formats that are read; the first one that fits is taken."""


def open_source(path: str, split: str | None = None) -> Source:
    """Opens a source of any format.

    Args:
      path: Its directory or file; may be gs:// or s3:// where the format can be read from there, or
        `octograin://` for bundled data.
      split: Split of the source; None: `train` where the format has splits.

    Raises:
      DataError: Where there is none, or its files are not readable.
      SchemaError: Where it declares what this project cannot store.
    """
    directory = open_path(local_path(path))
    # RLDS is the one whose error says what else lies there.
    found = next((known for known in FORMATS if known.holds(directory)), RLDS)
    return found.open(directory, split)
