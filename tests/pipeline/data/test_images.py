import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import decode_image
from pipeline.errors import DataError, SchemaError

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def encode(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def decode(encoded: bytes, shape: tuple = (12, 16, 3)) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    decode_image(encoded, out, "libero, record 3, image_primary")
    return out


def test_png_keeps_every_pixel() -> None:
    np.testing.assert_array_equal(decode(encode("PNG")), PIXELS)


@pytest.mark.parametrize("file", ["decode_resize_256", "image_128"])
def test_pixels_of_a_jpeg_are_to_the_bit_those_that_octo_was_trained_on(file: str) -> None:
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        expected = arrays["decoded" if file == "decode_resize_256" else "jpeg_decoded"]
        found = decode(arrays["jpeg_bytes"].tobytes(), expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_transparency_of_a_png_is_left_out() -> None:
    np.testing.assert_array_equal(decode(encode("PNG", "RGBA")), PIXELS)


def test_grey_jpeg_has_three_equal_channels() -> None:
    decoded = decode(encode("JPEG", "L"))
    np.testing.assert_array_equal(decoded, np.repeat(decoded[..., :1], 3, axis=-1))
    grey = np.asarray(Image.fromarray(PIXELS).convert("L")).astype(int)
    assert np.abs(decoded[..., 0] - grey).mean() < 8


def test_grey_image_of_sixteen_bits_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 16), 1000, np.uint16)).save(buffer, "PNG")
    message = "image_primary: expected an image of 8 bits per channel; found grey values of 16 bits"
    with pytest.raises(SchemaError, match=message):
        decode(buffer.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_image_is_decoded_into_a_part_of_a_batch(kind: str) -> None:
    batch = np.zeros((2, 2, 12, 16, 3), np.uint8)
    decode_image(encode(kind), batch[1, 0], "here")
    np.testing.assert_array_equal(batch[1, 0], decode(encode(kind)))
    assert not batch[0].any()
    assert not batch[1, 1].any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_image_of_another_size_is_refused(kind: str) -> None:
    message = "record 3, image_primary: expected an image of 16x12, .*found 12x16.*resize it"
    with pytest.raises(SchemaError, match=message):
        decode(encode(kind), (16, 12, 3))


def png_with_a_short_chunk() -> bytes:
    """Its second chunk seems to begin amid the pixels."""
    encoded = encode("PNG")
    place = encoded.index(b"IDAT")
    return encoded[: place - 4] + (8).to_bytes(4, "big") + encoded[place:]


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no image",
        encode("BMP"),
        encode("JPEG")[:-20],
        encode("JPEG")[:30],
        encode("PNG")[:-40],
        png_with_a_short_chunk(),
    ],
    ids=["empty", "other", "BMP", "cut JPEG", "JPEG header", "cut PNG", "broken PNG"],
)
def test_unreadable_image_is_refused_with_its_place(encoded: bytes) -> None:
    message = f"record 3, image_primary: expected a readable .*found {len(encoded)} bytes.*Fix"
    with pytest.raises(DataError, match=message):
        decode(encoded)
