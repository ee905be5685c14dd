"""A source of pixels as one of encoded images, which is what a dataset stores."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from converters.sources.image_encoding import QUALITY_NOTE, encode_jpeg, encode_png
from converters.sources.source import Episode, Source, SourceEpisode, SourceKey, SourceShard
from converters.sources.wrapped_source import WrappedSource
from pipeline.data.schema import Blob


def encode_source(source: Source) -> Source:
    """The same source with encoded images alone; itself where it holds no pixels."""
    has_pixels = any(key.jpeg_quality for key in source.keys.values())
    return EncodedSource(source) if has_pixels else source


@dataclasses.dataclass(frozen=True)
class EncodedSource(WrappedSource):
    """A source whose pixels are encoded episode by episode; see `encode_source`."""

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        """Those of the source; every image is encoded."""
        return {
            name: dataclasses.replace(key, jpeg_quality=0) for name, key in self.source.keys.items()
        }

    @property
    def notes(self) -> Mapping[str, str]:
        """The source's, and the quality of its images; the lowest where they have several."""
        quality = min(key.jpeg_quality for key in self.source.keys.values() if key.jpeg_quality)
        return {**self.source.notes, QUALITY_NOTE: str(quality)}

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the source's episodes, their pixels as JPEG, those of 16 bits as PNG."""
        qualities = {name: key.jpeg_quality for name, key in self.source.keys.items()}
        for episode in self.source.episodes(shard, wanted):
            if not isinstance(episode.values, dict):
                yield episode
                continue
            values: Episode = {
                name: _encoded(value, qualities[name])
                if qualities[name] and isinstance(value, np.ndarray)
                else value
                for name, value in episode.values.items()
            }
            yield dataclasses.replace(episode, values=values)
            del episode, values  # before the next one is read


def _encoded(images: np.ndarray, quality: int) -> list[Blob]:
    """Encodes uint8 or uint16 (t, h, w, c)."""
    if images.dtype == np.uint8:
        return [encode_jpeg(image, quality) for image in images]
    return [encode_png(image) for image in images]
