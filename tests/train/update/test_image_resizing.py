import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pipeline.data.dataset import open_dataset
from pipeline.data.images import decode_image
from train.update.image_resizing import resize_images

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"


@pytest.fixture(scope="module")
def frames(mini_dataset: pathlib.Path) -> np.ndarray:
    """uint8 (3 128 128 3): camera frames, their range brought to [64, 191]."""
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    encoded = [reader.read(index)["observation/image_primary"] for index in (0, 150, 400)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
    return images // 2 + 64


@pytest.mark.parametrize("size", [32, 48, 64, 96, 127, 200, 256])
def test_resized_images_are_those_of_pillow(frames: np.ndarray, size: int) -> None:
    resized = np.asarray(jax.jit(resize_images, static_argnums=(1, 2))(frames, size, size))
    expected = np.stack(
        [Image.fromarray(f).resize((size, size), Image.Resampling.LANCZOS) for f in frames]
    )
    assert (resized.dtype, resized.shape) == (np.uint8, (3, size, size, 3))
    # The same kernel, but Pillow rounds to whole grey levels between its two passes, and clips
    # there as well: hence frames of middle grey, and 1. Frames with black and white edges differ
    # by up to 10 in one pixel of 10,000.
    assert np.abs(resized.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (128, 128), (200, 200)])
def test_resized_images_are_those_of_the_original(size: tuple[int, int]) -> None:
    height, width = size
    with np.load(GOLDEN / "image_128.npz") as arrays:
        found = resize_images(jnp.asarray(arrays["image"]), height, width)
        expected = arrays[f"resize_{height}x{width}"]
    assert np.abs(np.asarray(found).astype(int) - expected).max() <= 1


def test_camera_is_decoded_and_resized_as_in_the_original() -> None:
    with np.load(GOLDEN / "decode_resize_256.npz") as arrays:
        image = np.empty((256, 256, 3), np.uint8)
        decode_image(arrays["jpeg_bytes"].tobytes(), image, "here")
        for name, size in (("image_primary", 256), ("image_wrist", 128)):
            found = np.asarray(resize_images(jnp.asarray(image), size, size)).astype(int)
            assert np.abs(found - arrays[name]).max() <= 1


def test_images_of_the_size_are_left_as_they_are(frames: np.ndarray) -> None:
    np.testing.assert_array_equal(resize_images(jnp.asarray(frames), 128, 128), frames)


def test_overshoot_at_an_edge_is_clipped() -> None:
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 255
    row = np.asarray(resize_images(jnp.asarray(step), 24, 24))[0, :, 0].astype(int)
    assert (row[0], row[-1]) == (0, 255)
    assert np.all(np.diff(row) >= -16)  # a value that wrapped around would fall by hundreds


def test_leading_axes_are_kept(frames: np.ndarray) -> None:
    windows = jnp.asarray(np.stack([frames, frames[::-1]]))
    resized = resize_images(windows, 32, 32)
    assert resized.shape == (2, 3, 32, 32, 3)
    np.testing.assert_array_equal(resized[1, 0], resize_images(windows[1, 0], 32, 32))
