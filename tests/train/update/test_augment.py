import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rounding import EPSILON, assert_equal_but_for_rounding
from train.train_config import AugmentConfig
from train.update import augment as operations
from train.update.augment import (
    Draws,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    apply,
    crop_and_resize,
    crop_box,
    to_uint8,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"
KEY = jax.random.key(0)
CAMERAS = ("image_primary", "image_wrist")
CONFIG = AugmentConfig()
augment = jax.jit(operations.augment, static_argnums=(1, 2, 3))
STAYS = AugmentConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    brightness=0.0,
    contrast=(1.0, 1.0),
    saturation=(1.0, 1.0),
    hue=0.0,
)


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """One image through the original's operations, with the result of each."""
    with np.load(GOLDEN / "augment_ops.npz") as stored:
        return dict(stored)


def clipped(images):
    return np.clip(np.asarray(images), 0.0, 1.0)[0, 0]


def test_crop_is_that_of_the_original(recorded):
    top, left, bottom, right = recorded["crop_box"][0]
    image = np.float32(recorded["image"])[None, None] / np.float32(255)
    box = np.array([[top, left, bottom - top, right - left]], np.float32)
    found = clipped(jax.jit(crop_and_resize)(image, box))
    # A position of up to n pixels is rounded by up to n * EPSILON / 2, in rows and in columns, and
    # moves a value by up to that part of the difference between two neighbours.
    steps = [np.abs(np.diff(image[0, 0], axis=axis)).max() for axis in (0, 1)]
    bound = max(image.shape[2:4]) * EPSILON * max(steps)
    np.testing.assert_allclose(found, recorded["1_crop"], atol=bound, rtol=0)


@pytest.mark.parametrize(
    ("operation", "before", "name", "after"),
    [
        (lambda x, by: x + by, "1_crop", "brightness", "2_brightness"),
        (adjust_contrast, "2_brightness", "contrast", "3_contrast"),
        (adjust_saturation, "3_contrast", "saturation", "4_saturation"),
        (adjust_hue, "4_saturation", "hue", "5_hue"),
    ],
)
def test_colour_operations_are_those_of_the_original(recorded, operation, before, name, after):
    factor = np.full((1, 1, 1, 1, 1), recorded[f"factor_{name}"], np.float32)
    found = jax.jit(operation)(recorded[before][None, None], factor)
    np.testing.assert_allclose(clipped(found), recorded[after], atol=1e-6, rtol=0)


def test_grey_levels_are_those_of_the_original(recorded):
    np.testing.assert_array_equal(to_uint8(jnp.asarray(recorded["5_hue"])), recorded["final_uint8"])


def test_all_operations_together_are_within_one_grey_level(recorded):
    top, left, bottom, right = recorded["crop_box"].T
    names = ("brightness", "contrast", "saturation", "hue")
    draws = {name: recorded[f"factor_{name}"][None] for name in names}
    draws |= {"top": top, "left": left, "height": bottom - top, "width": right - left}
    run = jax.jit(lambda images, by: apply(images, Draws(**by), crops=True))
    found = run(recorded["image"][None, None], draws)
    difference = np.abs(np.asarray(found)[0, 0].astype(int) - recorded["final_uint8"])
    assert difference.max() <= 1


def test_boxes_are_those_of_the_original_for_its_draws():
    # In the recording, all four draws of a box are one number.
    with np.load(GOLDEN / "augment_seeded.npz") as stored:
        boxes = stored["boxes_y0x0hw"]
    uniform = boxes[:, 0] / (1 - boxes[:, 2])
    draws = np.tile(np.float32(uniform), (4, 1))
    found = jax.jit(crop_box, static_argnums=(1, 2))(draws, (0.8, 1.0), (0.9, 1.1))
    np.testing.assert_allclose(np.stack(found, axis=1), boxes, atol=1e-6, rtol=0)


def batch(num_samples: int = 3, window: int = 2, first: int = 0) -> dict:
    """Returns the same image for all samples and steps, and as their goal."""
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    frames = np.tile(image, (num_samples, window, 1, 1, 1))
    real = np.ones((num_samples, window), bool)
    return {
        "observation": {
            "image_primary": frames,
            "image_wrist": frames,
            "proprio": np.zeros((num_samples, window, 8), np.float32),
            "pad_mask_dict": {"image_primary": real, "image_wrist": real},
        },
        "task": {"image_primary": frames[:, 0], "pad_mask_dict": {"image_primary": real[:, 0]}},
        "sample_index": np.arange(first, first + num_samples, dtype=np.int32),
    }


def draw(indices):
    return types.SimpleNamespace(**jax.device_get(_draw(np.asarray(indices, np.int32))))


@jax.jit
def _draw(indices):
    return vars(operations.draw(CONFIG, KEY, indices))


def test_draws_are_pinned():
    # These values may change only with jax's random numbers or the order of the draws: a resumed
    # run would then see other images.
    draws = draw([0, 1, 70000])
    expected = {
        "top": [0.0, 0.033902, 0.01165],
        "left": [0.005934, 0.053884, 0.045158],
        "height": [1.0, 0.941692, 0.949814],
        "width": [0.950845, 0.851084, 0.892523],
        "brightness": [-0.061637, -0.055392, 0.041945],
        "contrast": [1.044403, 0.923858, 0.964379],
        "saturation": [1.053089, 0.925088, 0.949166],
        "hue": [-0.034746, 0.011683, 0.047212],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(draws, name), values, atol=2e-6)


def test_draws_are_independent_and_within_their_ranges():
    draws = draw(range(4000))
    colours = np.stack([draws.brightness, draws.contrast, draws.saturation, draws.hue])
    np.testing.assert_allclose(np.corrcoef(colours), np.eye(4), atol=0.06)
    for values, (low, high) in zip(
        colours, [(-0.1, 0.1), (0.9, 1.1), (0.9, 1.1), (-0.05, 0.05)], strict=True
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    area = np.asarray(draws.height * draws.width)
    assert area.min() >= 0.8 - 1e-6
    assert area.max() <= 1
    assert (draws.top + draws.height <= 1 + 1e-6).all()
    assert (draws.left + draws.width <= 1 + 1e-6).all()
    assert abs(np.corrcoef(area, draws.brightness)[0, 1]) < 0.06


def test_sample_is_changed_alike_wherever_it_stands_in_a_batch():
    together = augment(batch(8), CONFIG, CAMERAS, ("image_primary",), KEY)
    alone = augment(batch(2, first=5), CONFIG, CAMERAS, ("image_primary",), KEY)
    for name in ("image_primary", "image_wrist"):
        np.testing.assert_array_equal(
            np.asarray(together["observation"][name])[5:7], alone["observation"][name]
        )


def test_window_and_goal_are_changed_alike_and_samples_and_cameras_are_not():
    images = batch()
    changed = augment(images, CONFIG, CAMERAS, ("image_primary",), KEY)
    primary, wrist = (np.asarray(changed["observation"][name]) for name in CAMERAS)
    np.testing.assert_array_equal(primary[:, 0], primary[:, 1])
    # Of another shape, the mean of an image is rounded differently.
    goal = np.asarray(changed["task"]["image_primary"]).astype(int)
    assert np.abs(goal - np.asarray(primary[:, 0]).astype(int)).max() <= 1
    assert (primary[0] != primary[1]).any()
    assert (primary != wrist).any()
    assert (primary != images["observation"]["image_primary"]).any()


def test_only_named_cameras_are_cropped():
    changed = augment(
        batch(), dataclasses.replace(STAYS, crop_scale=(0.5, 0.5)), CAMERAS, ("image_wrist",), KEY
    )
    before = batch()["observation"]
    assert not np.array_equal(changed["observation"]["image_wrist"], before["image_wrist"])
    np.testing.assert_array_equal(changed["observation"]["image_primary"], before["image_primary"])


def test_draws_of_a_camera_do_not_depend_on_the_others():
    alone = augment(batch(), CONFIG, ("image_wrist",), (), KEY)["observation"]
    together = augment(batch(), CONFIG, CAMERAS, (), KEY)["observation"]
    np.testing.assert_array_equal(alone["image_wrist"], together["image_wrist"])
    np.testing.assert_array_equal(alone["image_primary"], batch()["observation"]["image_primary"])


def test_ranges_of_one_value_change_nothing():
    changed = augment(batch(), STAYS, CAMERAS, CAMERAS, KEY)
    for name in ("image_primary", "image_wrist"):
        np.testing.assert_array_equal(changed["observation"][name], batch()["observation"][name])


def test_missing_image_stays_black():
    images = batch()
    images["task"]["image_primary"] = np.zeros_like(images["task"]["image_primary"])
    images["task"]["pad_mask_dict"]["image_primary"] = np.array([True, False, False])
    goal = augment(images, CONFIG, CAMERAS, ("image_primary",), KEY)["task"]["image_primary"]
    np.testing.assert_array_equal(np.asarray(goal)[1:], 0)


def test_an_image_of_a_shorter_window_is_masked_by_its_own_steps():
    black, images = jnp.zeros((2, 1, 1, 1, 3), jnp.uint8), jnp.ones((2, 1, 1, 1, 3), jnp.uint8)
    mask = jnp.array([[False, True], [True, False]])
    found = operations._where_real(mask, images, black)
    np.testing.assert_array_equal(found[:, 0, 0, 0, 0], [1, 0])


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_grey_keeps_its_hue(colour):
    grey = np.full((1, 1, 4, 4, 3), colour / 255, np.float32)
    for operation, by in ((adjust_hue, 0.3), (adjust_saturation, 2.0)):
        found = jax.jit(operation)(grey, np.full((1, 1, 1, 1, 1), by, np.float32))
        assert_equal_but_for_rounding(found, grey, terms=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_scale": (0.8, 1.2)}, ": expected a smallest and a largest value.*; found 0.8 1.2"),
        (
            {"contrast": (1.1, 0.9)},
            "contrast: expected a smallest and a largest value.*; found 1.1 0.9",
        ),
        ({"hue": -0.1}, r"brightness, hue: expected 0 to 1; found 0.1, -0.1"),
    ],
)
def test_ranges_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**change)
