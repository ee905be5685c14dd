"""The images that a conversion compresses."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from converters.sources.image_encoding import encode_jpeg, encode_png

RAMP = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_near_its_pixels_and_always_the_same(channels: int) -> None:
    pixels = np.repeat((RAMP // 4).astype(np.uint8), channels, axis=2)
    encoded = encode_jpeg(pixels)
    assert encoded == encode_jpeg(pixels[:, ::-1][:, ::-1])  # a view in another order
    colorspace = "RGB" if channels == 3 else "GRAY"
    decoded = simplejpeg.decode_jpeg(encoded, colorspace=colorspace)
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 1
    assert len(encode_jpeg(pixels, 30)) < len(encoded)


@pytest.mark.parametrize("pixels", [RAMP, np.zeros((4, 4, 4), np.uint8)])
def test_jpeg_refuses_what_it_cannot_hold(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="JPEG holds uint8"):
        encode_jpeg(pixels)


@pytest.mark.parametrize("pixels", [RAMP, np.repeat(RAMP.astype(np.uint8), 3, axis=2)])
def test_png_keeps_every_pixel(pixels: np.ndarray) -> None:
    decoded = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(decoded.reshape(pixels.shape), pixels)
    assert decoded.dtype == pixels.dtype
