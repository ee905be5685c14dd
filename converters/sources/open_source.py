"""Opening a source: its format is found by what lies there."""

import dataclasses
import importlib

from etils import epath

from converters.sources.source import Source
from pipeline.bundled import local_path
from pipeline.errors import UserError, install_extra
from pipeline.files import matching, open_path
from pipeline.hub.hub_address import DATASETS


@dataclasses.dataclass(frozen=True)
class SourceFormat:
    """A format, by the files that a directory of it has."""

    name: str
    """In words, such as `RLDS`."""
    globs: tuple[str, ...]
    """Files of which at least one lies in its directories."""
    module: str
    """The module with its opener, imported only where there is such a source."""
    opener: str
    """Function of (path, split or None) that returns a `Source`."""
    extra: str = ""
    """The optional dependency that it needs; empty for none."""
    is_file: bool = False
    """Whether such a file alone is a source."""
    encodes: bool = False
    """Whether it compresses images itself; its opener then takes their quality as well."""

    def holds(self, path: epath.Path) -> bool:
        """Whether a directory or file looks like one of this format."""
        if path.is_dir():
            return any(matching(path, glob) for glob in self.globs)
        return self.is_file and path.exists() and any(path.match(glob) for glob in self.globs)

    def open(self, path: epath.PathLike, split: str | None, image_quality: int | None) -> Source:
        """Opens a source; raises what its opener does.

        Raises:
          UserError: Where its optional dependency is not installed, or it has no use for a quality.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            if not self.extra:
                raise
            raise UserError(
                where=str(path),
                expected=f"the packages that read {self.name}",
                found=str(error),
                remedy=f"{install_extra(self.extra)}.",
            ) from error
        opener = getattr(module, self.opener)
        if image_quality is None:
            return opener(path, split)
        if not self.encodes:
            raise UserError(
                where=str(path),
                expected=f"no --image_quality: images of {self.name} are stored as they are",
                found=str(image_quality),
                remedy="Leave --image_quality out.",
            )
        return opener(path, split, image_quality)


RLDS = SourceFormat(
    "RLDS", ("features.json", "*/features.json"), "converters.rlds.rlds_source", "open_rlds"
)
LEROBOT = SourceFormat(
    "LeRobot",
    # One of these is there even where another is missing, which its reader then reports.
    ("meta/info.json", "meta/tasks.*", "meta/episodes*", "meta_data/info.json"),
    "converters.lerobot.lerobot_source",
    "open_lerobot",
    extra="lerobot",
    encodes=True,
)
HDF5 = SourceFormat(
    "HDF5",
    ("*.hdf5", "*.h5", "*/*.hdf5", "*/*.h5"),
    "converters.hdf5.hdf5_source",
    "open_hdf5",
    extra="hdf5",
    is_file=True,
    encodes=True,
)
FORMATS = (RLDS, LEROBOT, HDF5)
"""The formats that are read; the first one that fits is taken."""


def open_source(path: str, split: str | None = None, image_quality: int | None = None) -> Source:
    """Opens a source of any format.

    Args:
      path: Its directory or file; may be gs:// or s3:// where the format can be read from there, or
        `octograin://` for bundled data, or `hf://datasets/owner/name[@revision]` for a LeRobot
        dataset on the hub.
      split: Split of the source; None: `train` where the format has splits.
      image_quality: Quality of JPEG, 1 to 100, for images that the source does not hold encoded;
        None: that of `converters.sources.image_encoding`.

    Raises:
      DataError: Where there is none, or its files are not readable.
      SchemaError: Where it declares what this project cannot store.
      UserError: Where the optional dependency of its format is not installed, or the quality is of
        no use.
    """
    if path.startswith(DATASETS):
        return LEROBOT.open(path, split, image_quality)
    directory = open_path(local_path(path))
    # RLDS is the one whose error says what else lies there.
    found = next((known for known in FORMATS if known.holds(directory)), RLDS)
    return found.open(directory, split, image_quality)
