import io
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pipeline.batch import LeafSpec
from pipeline.dataset import open_dataset
from pipeline.device import (
    batch_sharding,
    data_mesh,
    one_ahead,
    replicated,
    resize_images,
    shape_structs,
)
from pipeline.errors import UserError
from pipeline.loader import LoadedBatch


def counted(num_batches: int, taken: list[int]) -> Iterator[LoadedBatch]:
    """Batches that hold their position; notes each that was asked for."""
    for position in range(num_batches):
        taken.append(position)
        yield LoadedBatch({"x": np.full((4, 2), position, np.int32)}, f"{position:08x}", position)


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5])
def test_one_ahead_keeps_the_order_and_loses_none(num_batches: int) -> None:
    sharding = batch_sharding(data_mesh(), 4)
    pairs = list(one_ahead(counted(num_batches, []), sharding))
    assert [batch.position for _, batch in pairs] == list(range(num_batches))
    for arrays, batch in pairs:
        assert arrays["x"].sharding == sharding
        np.testing.assert_array_equal(arrays["x"], batch.arrays["x"])


def test_next_batch_is_taken_before_this_one_is_given() -> None:
    taken: list[int] = []
    ahead = one_ahead(counted(5, taken), batch_sharding(data_mesh(), 4))
    next(ahead)
    assert taken == [0, 1]


def test_batch_is_split_over_the_devices() -> None:
    placed = jax.device_put(np.zeros((4, 2), np.float32), batch_sharding(data_mesh(), 4))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 2), (2, 2)]
    whole = jax.device_put(np.zeros((4, 2), np.float32), replicated(data_mesh()))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(4, 2), (4, 2)]


@pytest.mark.parametrize(("batch_size", "remedy"), [(5, 4), (3, 2), (1, 2)])
def test_uneven_batch_is_refused_with_one_that_fits(batch_size: int, remedy: int) -> None:
    message = f"a multiple of 2, the number of devices; found {batch_size}. Take {remedy}."
    with pytest.raises(UserError, match=message):
        batch_sharding(data_mesh(), batch_size)


def test_structs_are_the_nested_contract() -> None:
    sharding = batch_sharding(data_mesh(), 4)
    spec = {"a/b": LeafSpec("float16", (4, 3)), "c": LeafSpec("bool", (4,))}
    assert shape_structs(spec, sharding) == {
        "a": {"b": jax.ShapeDtypeStruct((4, 3), jnp.float16, sharding=sharding)},
        "c": jax.ShapeDtypeStruct((4,), jnp.bool_, sharding=sharding),
    }


@pytest.fixture(scope="module")
def frames(mini_dataset: pathlib.Path) -> np.ndarray:
    """uint8 (3 128 128 3): camera frames, their range brought to [64, 191]."""
    reader = open_dataset(str(mini_dataset)).columns["steps"]
    encoded = [reader.read(index)["observation/image_primary"] for index in (0, 150, 400)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
    return images // 2 + 64


@pytest.mark.parametrize("size", [32, 48, 64, 96, 127, 200, 256])
def test_resized_images_are_those_of_pillow(frames: np.ndarray, size: int) -> None:
    resized = np.asarray(jax.jit(resize_images, static_argnums=1)(frames, size))
    expected = np.stack(
        [Image.fromarray(f).resize((size, size), Image.Resampling.LANCZOS) for f in frames]
    )
    assert (resized.dtype, resized.shape) == (np.uint8, (3, size, size, 3))
    # The same kernel, but Pillow rounds to whole grey levels between its two passes, and clips
    # there as well: hence frames of middle grey, and 1. Frames with black and white edges differ
    # by up to 10 in one pixel of 10,000.
    assert np.abs(resized.astype(int) - expected.astype(int)).max() <= 1


def test_images_of_the_size_are_left_as_they_are(frames: np.ndarray) -> None:
    np.testing.assert_array_equal(resize_images(jnp.asarray(frames), 128), frames)


def test_overshoot_at_an_edge_is_clipped() -> None:
    step = np.zeros((16, 16, 3), np.uint8)
    step[:, 8:] = 255
    row = np.asarray(resize_images(jnp.asarray(step), 24))[0, :, 0].astype(int)
    assert (row[0], row[-1]) == (0, 255)
    assert np.all(np.diff(row) >= -16)  # a value that wrapped around would fall by hundreds


def test_leading_axes_are_kept(frames: np.ndarray) -> None:
    windows = jnp.asarray(np.stack([frames, frames[::-1]]))
    resized = resize_images(windows, 32)
    assert resized.shape == (2, 3, 32, 32, 3)
    np.testing.assert_array_equal(resized[1, 0], resize_images(windows[1, 0], 32))
