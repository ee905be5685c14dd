"""Pixels of a source as the images that a dataset stores."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from converters.sources.image_encoding import encode_jpeg, encode_source
from converters.sources.source import SourceKey
from tests.converters.memory_source import MemorySource


@dataclasses.dataclass(frozen=True)
class PixelSource(MemorySource):
    """A memory source whose uint8 arrays are pixels."""

    quality: int = 80

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        return {
            name: dataclasses.replace(key, kind="image", jpeg_quality=self.quality)
            if key.dtype == "uint8"
            else key
            for name, key in super().keys.items()
        }


PIXELS = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
SOURCE = PixelSource(({"steps/action": np.zeros((2, 1), np.float32), "steps/image": PIXELS},))


def test_pixels_are_encoded_and_the_episode_of_the_source_is_unchanged() -> None:
    encoded = encode_source(SOURCE)
    assert encoded.keys["steps/image"].jpeg_quality == 0
    (read,) = encoded.episodes(encoded.shards[0])
    assert isinstance(read.values, dict)
    assert read.values["steps/image"] == [encode_jpeg(image, 80) for image in PIXELS]
    assert SOURCE.held[0]["steps/image"] is PIXELS


def test_the_quality_is_noted() -> None:
    """It decides what a job writes, so one that resumes with another quality is refused."""
    assert encode_source(SOURCE).notes == {"jpeg_quality": "80"}
    plain = MemorySource(SOURCE.held)
    assert encode_source(plain) is plain
