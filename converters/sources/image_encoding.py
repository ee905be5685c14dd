"""Pixels as encoded images: the one place where a conversion compresses any."""

import io

import numpy as np
import simplejpeg
from PIL import Image

from pipeline.errors import UserError

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
