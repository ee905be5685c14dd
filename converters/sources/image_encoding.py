"""Pixels and depth as encoded images: the one place where a conversion compresses any."""

import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import simplejpeg
from PIL import Image

from converters.sources.source import (
    Episode,
    Source,
    SourceEpisode,
    SourceKey,
    SourceShard,
    WrappedSource,
)
from pipeline.data.images import MM_PER_M, check_depth
from pipeline.data.schema import Blob, Feature
from pipeline.errors import SchemaError, UserError

_MOST_MM = np.iinfo(np.uint16).max


def depth_images(values: np.ndarray | Sequence[Blob], feature: Feature, where: str) -> list[Blob]:
    """Returns depth images at rest, one per step: PNG of 16 bits in millimetres.

    Args:
      values: Encoded ones, which stay as they are, or numbers (t, h, w) or (t, h, w, 1) in the
        feature's `source_unit`.
      feature: The feature, of kind `depth`.
      where: File and episode, for errors.

    Raises:
      DataError: An encoded image is not readable.
      SchemaError: An image has another size or type than declared, or a value that millimetres of
        16 bits do not hold.
    """
    images: list[Blob] = []
    for t, value in enumerate(values):
        place = f"{where}, {feature.source}, step {t}"
        if isinstance(value, np.ndarray):
            images.append(encode_png(_millimetres(value, feature, place)))
        else:
            check_depth(value, feature.shape, place)
            images.append(value)
    return images


def _millimetres(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    """Returns the depth of one step as uint16 (h, w, 1); metres are rounded to the millimetre."""
    (declared,) = feature.origins
    if values.shape != declared.shape or values.dtype != declared.dtype:
        raise SchemaError(
            where=where,
            expected=f"{declared.dtype}{list(declared.shape)}, as the source declares",
            found=f"{values.dtype}{list(values.shape)}",
            remedy="Every image of a feature has one size and dtype: correct it at the source.",
        )
    scale = MM_PER_M if feature.source_unit == "m" else 1
    # float64, so that 0.0015 m as a float32 is not rounded twice.
    millimetres = np.rint(values.astype(np.float64) * scale)
    # NaN is on neither side, so both are asked for.
    wrong = ~((millimetres >= 0) & (millimetres <= _MOST_MM))
    if wrong.any():
        found = ", ".join(f"{value:g}" for value in np.unique(values[wrong])[:3].tolist())
        raise SchemaError(
            where=where,
            expected=f"depth from 0 to {_MOST_MM / scale:g} {feature.source_unit}, 0 where there "
            "is no reading",
            found=f"{int(wrong.sum())} other values, such as {found}",
            remedy="Write 0 for them at the source, or correct depth_unit in the mapping.",
        )
    return millimetres.astype(np.uint16).reshape(feature.shape)


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


IMAGE_QUALITY = 95
"""Quality of JPEG by default. It changes the frames of a LeRobot video by 0.9 grey levels in the
mean, at 17 KB for 256x256 pixels."""
QUALITY_NOTE = "jpeg_quality"
"""Note of a source that compresses images, with the quality that it does so in."""
_GREY, _RGB = 1, 3
_BEST = 100
_PNG_LEVEL = 3
"""A third of the time of zlib's default, for files that are 5 % larger."""


def encode_jpeg(pixels: np.ndarray, quality: int = IMAGE_QUALITY) -> bytes:
    """Encodes uint8 (h, w, 3), or (h, w, 1) as a grey image; the same pixels give the same bytes.

    The colours have half the resolution, as in nearly every video and in the images that
    tensorflow-datasets writes.
    """
    if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((_GREY,), (_RGB,)):
        raise ValueError(f"JPEG holds uint8 (h, w, 1 or 3), not {pixels.dtype}{pixels.shape}")
    colorspace = "GRAY" if pixels.shape[2] == _GREY else "RGB"
    subsampling = "Gray" if pixels.shape[2] == _GREY else "420"
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels),
        quality=quality,
        colorspace=colorspace,
        colorsubsampling=subsampling,
    )


def check_quality(quality: int, where: str) -> None:
    """Checks that JPEG has a quality.

    Raises:
      UserError: It is not from 1 to 100.
    """
    if not 1 <= quality <= _BEST:
        raise UserError(
            where=where,
            expected=f"a quality of JPEG from 1 to {_BEST}",
            found=str(quality),
            remedy="Name another --image_quality, or none.",
        )


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (h, w, c) or uint16 (h, w, 1) without loss."""
    # Pillow's grey images have no axis of channels.
    plane = pixels[:, :, 0] if pixels.shape[2] == _GREY else pixels
    file = io.BytesIO()
    Image.fromarray(plane).save(file, format="PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
