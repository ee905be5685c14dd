"""A source inside another one that changes what it yields."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from etils import epath

from converters.sources.source import Source, SourceKey, SourceShard

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
