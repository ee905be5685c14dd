"""A source whose episodes are arrays in memory."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from converters.sources.source import Episode, SourceEpisode, SourceKey, SourceShard


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """One shard of episodes; each key has the type of its values in the first of them."""

    held: tuple[Mapping[str, np.ndarray | list[bytes]], ...]
    """Episodes, by source key: a list of bytes is a text, or an encoded image by `images`."""
    images: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """Shapes of the images by their keys."""
    name: str = "memory"
    format: str = "memory"
    declaration: str = "memory"
    version: str = ""
    split: str = ""
    selection: str = ""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> epath.Path:
        return epath.Path("/memory")

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        made = {}
        for key, values in sorted(self.held[0].items()):
            if isinstance(values, np.ndarray):
                made[key] = SourceKey(key, "tensor", values.shape[1:], values.dtype.name)
            elif key in self.images:
                made[key] = SourceKey(key, "image", self.images[key], "uint8")
            else:
                made[key] = SourceKey(key, "text", (), "utf8")
        return made

    @property
    def shards(self) -> Sequence[SourceShard]:
        return (SourceShard("all", "memory", (), len(self.held)),)

    def check_files(self) -> None:
        pass

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        for number, values in enumerate(self.held):
            kept: Episode = {
                key: value if isinstance(value, np.ndarray) else list(value)
                for key, value in values.items()
                if wanted is None or key in wanted
            }
            yield SourceEpisode(number, f"memory, episode {number}", 1, kept)

    def select(self, start: int, stop: int) -> "MemorySource":
        return dataclasses.replace(self, held=self.held[start:stop])
