"""Camera images and depth: reads their size, decodes them into given arrays, resizes them."""

import contextlib
import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.data.schema import Blob
from pipeline.errors import DataError, SchemaError

MM_PER_M = 1000
_PNG = ("PNG",)
# Pillow's names of one channel of 16 bits; before release 11.1 such a file has 32 in memory.
_MODES = ("I;16", "I;16B", "I")

# SOI, the marker that begins every JPEG.
_JPEG = b"\xff\xd8"
_UNREADABLE = (ValueError, OSError, SyntaxError, Image.DecompressionBombError)
"""Errors of the decoders. Pillow raises the last two for a broken PNG, and for one whose header
claims a size beyond any camera's."""
_SHOWN_BYTES = 8


def image_format(encoded: Blob) -> Literal["jpeg", "png"]:
    """Returns the format that the first bytes suggest; decoding shows whether it is valid."""
    return "jpeg" if encoded[:2] == _JPEG else "png"


def image_size(encoded: Blob, where: str) -> tuple[int, int]:
    """Returns (height, width) of a JPEG or PNG from its header; no pixel is decoded.

    Raises:
      DataError: The bytes are no readable image.
    """
    try:
        if image_format(encoded) == "jpeg":
            height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        else:
            # Formats are restricted, so that Pillow does not try other decoders on unknown bytes.
            # Pillow's order is (width, height).
            width, height = Image.open(io.BytesIO(encoded), formats=_PNG).size
    except _UNREADABLE as error:
        raise _unreadable(encoded, error, where) from error
    return int(height), int(width)


def check_image(encoded: Blob, shape: tuple[int, ...], where: str) -> None:
    """Checks the size of an image from its header; no pixel is decoded.

    Args:
      encoded: JPEG or PNG.
      shape: (h, w, 3), as the schema declares.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: The bytes are no readable image.
      SchemaError: The image has another size.
    """
    height, width = image_size(encoded, where)
    if (height, width) != shape[:2]:
        raise SchemaError(
            where=where,
            expected=f"an image of {shape[0]}x{shape[1]}, as the schema declares",
            found=f"{height}x{width}",
            remedy="Every image of a feature has one size: resize it at the source.",
        )


def check_pixels(encoded: Blob, where: str) -> None:
    """Decodes an image to its last byte, at the smallest scale that the format allows.

    A JPEG that was truncated, or whose body was overwritten, still has a valid header, so all of
    its data is read here. An eighth of the resolution takes 0.6 of the time of a full decode.

    Args:
      encoded: JPEG or PNG.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: The decoder warns about the data or rejects it.
    """
    try:
        if image_format(encoded) == "jpeg":
            # A scale of 1/8, the smallest of libjpeg; grey, so chroma is read but not converted.
            simplejpeg.decode_jpeg(
                encoded, "GRAY", fastdct=True, fastupsample=True, min_height=1, min_width=1
            )
        else:
            # `open` reads the header alone, `load` the pixels.
            Image.open(io.BytesIO(encoded), formats=_PNG).load()
    except _UNREADABLE as error:
        raise _unreadable(encoded, error, where) from error


def decode_image(encoded: Blob, out: np.ndarray, where: str) -> None:
    """Decodes an RGB image into `out`.

    Args:
      encoded: JPEG or PNG.
      out: uint8 (h w 3), contiguous; overwritten.
      where: Dataset, record and feature, for errors.

    Raises:
      DataError: The bytes are no readable image.
      SchemaError: The image has another size than `out`, or grey values of 16 bits.
    """
    try:
        if image_format(encoded) == "jpeg":
            found = decode_jpeg(encoded, out)
        else:
            # Before decoding: Pillow would allocate whatever size the header claims.
            check_image(encoded, out.shape, where)
            found = out.shape
            image = Image.open(io.BytesIO(encoded), formats=_PNG)
            _check_mode(image.mode, where)
            # A palette, grey or alpha channel becomes RGB.
            out[...] = np.asarray(image.convert("RGB"))
    except _UNREADABLE as error:
        check_image(encoded, out.shape, where)  # a wrong size is reported as a wrong size
        raise _unreadable(encoded, error, where) from error
    if found != out.shape:
        # A smaller image fits into the buffer, so simplejpeg raises no error.
        check_image(encoded, out.shape, where)


def _check_mode(mode: str, where: str) -> None:
    # Pillow clips them to 255, which makes nearly every pixel white.
    if mode in _MODES:
        raise SchemaError(
            where=where,
            expected="an image of 8 bits per channel",
            found="grey values of 16 bits",
            remedy="Map it as depth if they are millimetres, or write 8 bits at the source.",
        )


def decode_jpeg(encoded: Blob, out: np.ndarray) -> tuple[int, ...]:
    """Decodes an RGB image into `out`, and returns the shape that the image has.

    The fast integer DCT is what TensorFlow's `decode_image` uses, so pixels are bitwise identical
    to those that Octo was trained on. The accurate one differs by 1.2 grey levels on average.

    Raises:
      ValueError: The bytes are no JPEG, or the image is larger than `out`.
    """
    # fastupsample stays off: TensorFlow does not use it, and it differs by up to 72 grey levels.
    return simplejpeg.decode_jpeg(encoded, "RGB", fastdct=True, buffer=out).shape


def resize_image(image: np.ndarray, out: np.ndarray) -> None:
    """Resizes an image to the size of `out`, and writes it there.

    The result differs from that of `train.update.image_resizing.resize_images`, which resizes
    inside the training step, by one grey level in about one of 100,000 values.

    Args:
      image: uint8 (y x 3).
      out: uint8 (h w 3); overwritten.

    Source: `tf.image.resize` with lanczos3 and antialiasing, then round and clip, as in Octo.
    """
    if image.shape == out.shape:
        out[...] = image
        return
    if image.dtype != np.uint8:
        raise ValueError(f"only uint8 images are resized, not {image.dtype}{list(image.shape)}")
    height, width = out.shape[:2]
    # Channel by channel, because Pillow's float images have only one.
    for channel in range(out.shape[2]):
        # Pillow would round and clip uint8 images between the two directions.
        floats = Image.fromarray(image[..., channel].astype(np.float32))
        resized = floats.resize((width, height), Image.Resampling.LANCZOS)
        out[..., channel] = np.clip(np.rint(np.asarray(resized)), 0, 255)


@contextlib.contextmanager
def unreadable_image(encoded: Blob, where: str) -> Iterator[None]:
    """Turns a decoder's error inside the block into one that names the place.

    Raises:
      DataError: The bytes are no readable image.
    """
    try:
        yield
    except _UNREADABLE as error:
        raise _unreadable(encoded, error, where) from error


def _unreadable(encoded: Blob, error: Exception, where: str) -> DataError:
    # Pillow's message for unknown formats contains the address of an object in memory.
    reason = "no header of one" if isinstance(error, UnidentifiedImageError) else str(error)
    return DataError(
        where=where,
        expected="a readable JPEG or PNG image",
        found=f"{len(encoded)} bytes that start with {bytes(encoded[:_SHOWN_BYTES])!r}: "
        f"{reason.rstrip('.')}",
        remedy="Fix the image at the source and convert again.",
    )


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
