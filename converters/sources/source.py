"""A source of episodes: the interface between a format and the conversion.

A format is a class with these attributes and methods. The job, its workers and runners, the
mapping, `--describe` and verification are written against it alone.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from etils import epath

from pipeline.data.schema import Blob
from pipeline.errors import DataError, SchemaError

STEPS = "steps/"
"""Prefix of every key that has one value per step."""
IS_FIRST, IS_LAST, IS_TERMINAL = (f"{STEPS}is_{name}" for name in ("first", "last", "terminal"))
"""Keys that mark steps: the first, the last, and the last of an episode that ended by itself."""

Episode = dict[str, np.ndarray | list[Blob]]
"""Values by source key. A tensor is (t, *shape). Texts are a list of t, in UTF-8. Images are a list
of t encoded ones, JPEG or PNG (of depth in mm: PNG of one channel of 16 bits), or uint8
(t, h, w, c). A key outside `steps/` has t = 1."""


@dataclasses.dataclass(frozen=True)
class SourceKey:
    """A named value of an episode, as the source declares it."""

    key: str
    """Its path, such as `steps/observation/state`; of a view `steps/observation/images[0]`."""
    kind: Literal["tensor", "image", "text", "other"]
    """What it holds; `other` is what only a mapping's `ignore` can take: ragged, nested, encoded
    and texts of more than one value."""
    shape: tuple[int, ...]
    """Shape of one value."""
    dtype: str
    """The declared dtype: of an image's pixels, `utf8` for a text, in words for `other`."""
    lengths: tuple[int, ...] = ()
    """Lengths of the fixed sequences that hold the value, the outermost first; they are part of
    the shape of a tensor."""
    view: int | None = None
    """The place of an image in its sequence."""
    has_images: bool = False
    """Whether it is a camera that cannot be stored: for `other`, whose shape is not known."""
    dims: tuple[str, ...] = ()
    """Names of the last axis, where the source has them."""
    jpeg_quality: int = 0
    """Quality at which an image is encoded whose values are pixels; 0: the source holds encoded
    images."""

    @property
    def stored(self) -> str:
        """The key that it has in a record; one for all views of a sequence."""
        return self.key if self.view is None else self.key.removesuffix(f"[{self.view}]")


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """Episodes that are converted together; they become one shard of every column."""

    name: str
    """Name in the dataset's list of skipped episodes; no other shard of the source has it."""
    where: str
    """Place for errors."""
    paths: tuple[epath.Path, ...]
    """The files that hold its episodes; a shard is converted again where they changed."""
    num_records: int
    """Episodes that the source promises."""
    start: int = 0
    """The first of them that is read."""
    stop: int | None = None
    """The first after `start` that is not read any more; None: all are."""
    digest: str = ""
    """Digest of what its episodes take from elsewhere than `paths`, such as the texts of tasks; a
    shard is converted again where it changed. Empty where there is no such thing."""

    @property
    def num_episodes(self) -> int:
        """Episodes that are read."""
        return (self.num_records if self.stop is None else self.stop) - self.start


@dataclasses.dataclass(frozen=True)
class SourceEpisode:
    """An episode as it was read, or why it could not be."""

    number: int
    """Its place among the episodes of its shard, those before `start` included."""
    where: str
    """Place for errors."""
    num_bytes: int
    """Bytes that were read for it."""
    values: Episode | DataError | SchemaError
    """Values by source key; the error, where this episode alone is not readable."""


@runtime_checkable
class Source(Protocol):
    """What a conversion reads. Workers get a copy each, so it can be pickled and holds no file."""

    @property
    def format(self) -> str:
        """The format in words, with its version: `LeRobot 3.0`."""
        ...

    @property
    def directory(self) -> epath.Path:
        """The folder or file that was opened."""
        ...

    @property
    def declaration(self) -> str:
        """The file that declares the keys, for errors."""
        ...

    @property
    def name(self) -> str:
        """The dataset's own name; mappings are found by it."""
        ...

    @property
    def version(self) -> str:
        """The dataset's own version; empty where it has none."""
        ...

    @property
    def split(self) -> str:
        """The split that is read; empty where the format has none."""
        ...

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        """Source keys by name, in alphabetical order."""
        ...

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Shards in the order of their episodes."""
        ...

    @property
    def selection(self) -> str:
        """The range of episodes that is read, such as `0:100 of 432`; empty where all are."""
        ...

    @property
    def notes(self) -> Mapping[str, str]:
        """What else the provenance of a dataset made from it says."""
        ...

    def check_files(self) -> None:
        """Checks that the files of all episodes that are read are there, before any of them is.

        Raises:
          DataError: Where some or all are missing.
        """
        ...

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the episodes of a shard that are read, in order.

        Args:
          shard: One of `shards`.
          wanted: Source keys whose values are read and checked; None: all but those of kind
            `other`.

        Raises:
          DataError: Where the rest of the shard cannot be read.
        """
        ...

    def select(self, start: int, stop: int) -> "Source":
        """The episodes from `start` to before `stop`, counted over all shards.

        Raises:
          UserError: Where there are no such episodes.
        """
        ...


def place_of(source: Source) -> str:
    """The source as a place for errors: where it lies, and its split where it has one."""
    return f"{source.directory}, split {source.split}" if source.split else str(source.directory)


Wrapped = TypeVar("Wrapped", bound="WrappedSource")


@dataclasses.dataclass(frozen=True)
class WrappedSource:
    """Has all that the source inside has; derived classes say what is different."""

    source: Source
    """The source that is read."""

    @property
    def format(self) -> str:
        """The source's."""
        return self.source.format

    @property
    def directory(self) -> epath.Path:
        """The source's."""
        return self.source.directory

    @property
    def declaration(self) -> str:
        """The source's."""
        return self.source.declaration

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def version(self) -> str:
        """The source's."""
        return self.source.version

    @property
    def split(self) -> str:
        """The source's."""
        return self.source.split

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        """The source's."""
        return self.source.keys

    @property
    def shards(self) -> Sequence[SourceShard]:
        """The source's."""
        return self.source.shards

    @property
    def selection(self) -> str:
        """The source's."""
        return self.source.selection

    @property
    def notes(self) -> Mapping[str, str]:
        """The source's."""
        return self.source.notes

    def check_files(self) -> None:
        """Checks the source's files."""
        self.source.check_files()

    def select(self: Wrapped, start: int, stop: int) -> Wrapped:
        """The same with a range of the source's episodes."""
        return dataclasses.replace(self, source=self.source.select(start, stop))
