"""Depth images: 16-bit PNG in millimetres at rest, float32 metres in a batch; 0 = no reading."""

import io

import numpy as np
from PIL import Image

from pipeline.data.images import check_image, unreadable_image
from pipeline.data.schema import Blob
from pipeline.errors import SchemaError

MM_PER_M = 1000
_PNG = ("PNG",)
# Pillow's names of one channel of 16 bits; before release 11.1 such a file has 32 in memory.
_MODES = ("I;16", "I;16B", "I")


def decode_depth(encoded: Blob, out: np.ndarray, where: str) -> None:
    """Decodes a depth image into `out`.

    Args:
      encoded: PNG of one channel of 16 bits, in millimetres.
      out: float32 (h w 1), contiguous; overwritten with metres. Each is the float32 that is nearest
        to the millimetres, so that 1000 times it rounds to them again.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: The bytes are no readable PNG.
      SchemaError: The image has another size than `out`, or other pixels.
    """
    # Division rounds once; a product with 0.001 would round twice.
    np.divide(read_millimetres(encoded, out.shape, where), np.float32(MM_PER_M), out=out)


def read_millimetres(encoded: Blob, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Returns the stored values of a depth image, uint16 (h w 1).

    Args:
      encoded: PNG of one channel of 16 bits.
      shape: (h, w, 1), as the schema declares.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: The bytes are no readable PNG.
      SchemaError: The image has another size or other pixels.
    """
    check_depth(encoded, shape, where)
    with unreadable_image(encoded, where):
        pixels = np.asarray(Image.open(io.BytesIO(encoded), formats=_PNG))
    return pixels.astype(np.uint16, copy=False)[:, :, np.newaxis]


def check_depth(encoded: Blob, shape: tuple[int, ...], where: str) -> None:
    """Checks the size and type of a depth image from its header; no pixel is decoded.

    Raises:
      DataError: The bytes are no readable PNG.
      SchemaError: The image has another size or other pixels.
    """
    check_image(encoded, shape, where)
    with unreadable_image(encoded, where):
        mode = Image.open(io.BytesIO(encoded), formats=_PNG).mode
    if mode not in _MODES:
        raise SchemaError(
            where=where,
            expected="a depth image: a PNG of one channel of 16 bits",
            found=f"one of the mode {mode}",
            remedy="Write depth as 16-bit grey PNG in millimetres at the source.",
        )
