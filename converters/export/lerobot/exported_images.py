"""Images of a dataset on their way into a LeRobot dataset: their bytes, and their pixels."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from converters.export.lerobot.lerobot_columns import ExportedFeature
from converters.sources.image_encoding import encode_png
from pipeline.data.images import check_image, decode_image, read_millimetres, unreadable_image
from pipeline.data.schema import Blob

_UPRIGHT = (None, 1)
"""Orientations by which a reader turns nothing."""


@dataclasses.dataclass(frozen=True)
class EpisodeImages:
    """The images of a camera, or of depth, in an episode.

    Its methods raise a `DataError` for bytes that are no readable image, and a `SchemaError` for an
    image of another size than the schema declares.
    """

    of: ExportedFeature
    values: np.ndarray | Sequence[Blob]
    """Encoded, or uint8 (t, h, w, 3)."""
    where: str
    """Dataset, episode and feature, for errors."""

    def pixels(self, t: int) -> np.ndarray:
        """Returns the pixels of a step: uint8 (h, w, 3), or of depth uint16 (h, w, 1) in mm."""
        return _pixels(self.values[t], self.of.feature.shape, f"{self.where}, step {t}")

    def stored(self) -> list[bytes]:
        """Returns all of them as LeRobot stores them in a data file.

        A JPEG or PNG stays as it is if LeRobot's reader, which decodes it with Pillow, sees three
        channels that are not turned. Anything else becomes a PNG of the same pixels.
        """
        if self.of.storage == "depth":
            return [bytes(image) for image in self.values]
        shape = self.of.feature.shape
        return [
            _stored(image, shape, f"{self.where}, step {t}") for t, image in enumerate(self.values)
        ]


def _pixels(image: Blob | np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if shape[-1] == 1:
        return read_millimetres(image, shape, where)
    out = np.empty(shape, np.uint8)
    decode_image(image, out, where)
    return out


def _stored(image: Blob | np.ndarray, shape: tuple[int, ...], where: str) -> bytes:
    if isinstance(image, np.ndarray):
        return encode_png(image)
    check_image(image, shape, where)
    with unreadable_image(image, where):
        # The header alone is read.
        opened = Image.open(io.BytesIO(image), formats=("JPEG", "PNG"))
        orientation = opened.getexif().get(Image.ExifTags.Base.Orientation)
    if opened.mode == "RGB" and orientation in _UPRIGHT:
        return bytes(image)
    return encode_png(_pixels(image, shape, where))
