import io

import numpy as np
import pytest
from PIL import Image

from converters.sources.image_encoding import encode_png
from pipeline.data.images import MM_PER_M, decode_depth, read_millimetres, resize_image
from pipeline.data.schema import Column, Feature, Schema
from pipeline.errors import DataError, SchemaError

EVERY = np.arange(2**16, dtype=np.uint16).reshape(256, 256, 1)
DEPTH = Feature("observation/depth", "depth", (256, 256, 1), "uint16", "float32", "steps/depth")


def test_every_millimetre_is_exact_in_a_batch() -> None:
    metres = np.empty(EVERY.shape, np.float32)
    decode_depth(encode_png(EVERY), metres, "x")
    np.testing.assert_array_equal(metres, (EVERY / 1000.0).astype(np.float32))
    np.testing.assert_array_equal(np.rint(metres * np.float32(MM_PER_M)), EVERY)
    np.testing.assert_array_equal(read_millimetres(encode_png(EVERY), EVERY.shape, "x"), EVERY)


def encoded(mode: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (encoded("L"), SchemaError, "a PNG of one channel of 16 bits; found one of the mode L"),
        (encoded("RGB"), SchemaError, "found one of the mode RGB. Write depth as 16-bit grey PNG"),
        (encoded("L", "JPEG"), DataError, "expected a readable JPEG or PNG image"),
        (encode_png(EVERY), SchemaError, "expected an image of 4x4, as the schema declares; found"),
        (encode_png(EVERY[:4, :4])[:-30], DataError, "x: expected a readable JPEG or PNG image"),
        (b"", DataError, "expected a readable JPEG or PNG image"),
    ],
)
def test_what_is_no_depth_image_is_refused(image: bytes, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        decode_depth(image, np.empty((4, 4, 1), np.float32), "x")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"dtype": "int32"}, r"int32\[256, 256, 1\], float32 in the batch"),
        ({"shape": (256, 256, 3)}, r"uint16\[256, 256, 3\], float32"),
        ({"shape": (256, 1)}, r"uint16\[256, 1\], float32"),
        ({"batch_dtype": "uint8"}, r"uint16\[256, 256, 1\], uint8 in the batch"),
    ],
)
def test_depth_of_other_types_breaks_the_dtype_law(change: dict, found: str) -> None:
    Schema((Column("steps", "step", (DEPTH,)),)).check("x")
    wrong = Feature(**{**vars(DEPTH), **change})
    with pytest.raises(SchemaError, match=f"expected a depth image of uint16.* found {found}"):
        Schema((Column("steps", "step", (wrong,)),)).check("x")


def test_depth_is_no_camera_and_is_never_resized() -> None:
    column = Column("steps", "step", (DEPTH,))
    assert not column.is_camera(DEPTH)
    assert not column.is_lowdim(DEPTH)
    with pytest.raises(ValueError, match=r"only uint8 images are resized, not float32\[4, 4, 1\]"):
        resize_image(np.zeros((4, 4, 1), np.float32), np.zeros((2, 2, 1), np.float32))
