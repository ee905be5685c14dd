"""Decoding camera images into arrays that are already there."""

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.errors import DataError, SchemaError


def decode_image(encoded: bytes, out: np.ndarray, where: str) -> None:
    """Decodes an RGB image into `out`.

    Args:
      encoded: JPEG, or any other format that Pillow reads, such as PNG.
      out: uint8 (h w 3), contiguous; overwritten.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: Bytes that are no readable image.
      SchemaError: An image of another size.
    """
    try:
        if simplejpeg.is_jpeg(encoded):
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
            _check_size((int(height), int(width)), out, where)
            simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
        else:
            image = Image.open(io.BytesIO(encoded))
            _check_size((image.height, image.width), out, where)
            out[...] = np.asarray(image.convert("RGB"))
    except (ValueError, OSError, UnidentifiedImageError) as error:
        raise DataError(
            where=where,
            expected="a readable JPEG or PNG image",
            found=f"{len(encoded)} bytes: {error}",
            remedy="Mend the image at the source and convert again.",
        ) from error


def _check_size(found: tuple[int, int], out: np.ndarray, where: str) -> None:
    if found != out.shape[:2]:
        raise SchemaError(
            where=where,
            expected=f"an image of {out.shape[0]}x{out.shape[1]}, as the schema declares",
            found=f"{found[0]}x{found[1]}",
            remedy="Every image of a feature has one size: resize it at the source.",
        )
