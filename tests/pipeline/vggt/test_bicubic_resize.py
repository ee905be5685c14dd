from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pipeline.vggt.encoder import bicubic_weights, resize_bicubic


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(jax.jit(resize_bicubic, static_argnums=(1, 2))(image[None], height, width))[0]


def test_a_shrunk_image_is_the_recorded_one(golden_case: Callable) -> None:
    recorded = golden_case("preproc_256_to_224")
    np.testing.assert_array_equal(
        resized(recorded["image_u8"], 224, 224), recorded["pil_bicubic_u8"]
    )


@pytest.mark.parametrize("size", [(70, 98), (98, 42), (14, 140), (224, 100), (518, 518)])
def test_any_size_is_pillows(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 100, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized(image, *size), np.asarray(expected))


def test_an_image_of_the_size_is_left_alone() -> None:
    image = jnp.zeros((1, 28, 14, 3), jnp.uint8)
    assert resize_bicubic(image, 28, 14) is image


@pytest.mark.parametrize("lengths", [(10, 10), (10, 7), (7, 10), (256, 224)])
def test_weights_of_a_new_pixel_sum_to_one(lengths: tuple[int, int]) -> None:
    weights = bicubic_weights(*lengths)
    assert weights.shape == lengths
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-7)
