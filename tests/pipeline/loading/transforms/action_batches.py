"""Batches of actions with named dimensions, for tests of transforms."""

from collections.abc import Sequence

import numpy as np

from pipeline.data.schema import ACTION
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.transforms.action_dims import ACTION_MASK
from pipeline.loading.transforms.transform import ActionTransform

STATE = "observation/proprio"


def make_spec(
    action: Sequence[str],
    state: Sequence[str],
    sizes: tuple[int, int, int] = (2, 3, 4),
    raw: Sequence[str] = (),
) -> BatchSpec:
    """Types of a batch of an action and a state of these dimensions; sizes are b, w and h."""
    b, w, h = sizes
    shape = (b, w, h, len(action))
    return {
        ACTION: LeafSpec("float32", shape, tuple(action), frozenset(raw)),
        ACTION_MASK: LeafSpec("bool", shape, tuple(action)),
        STATE: LeafSpec("float32", (b, w, len(state)), tuple(state)),
        "observation/pad_mask_dict/proprio": LeafSpec("bool", (b, w)),
    }


def make_batch(spec: BatchSpec, seed: int = 0) -> FlatBatch:
    """Random actions and states; the last action of each chunk is past the episode's end."""
    rng = np.random.default_rng(seed)
    batch = {
        key: np.ones(leaf.shape, bool)
        if leaf.dtype == "bool"
        else rng.normal(size=leaf.shape).astype(np.float32)
        for key, leaf in spec.items()
    }
    batch[ACTION_MASK][:, :, -1] = False
    return batch


def there_and_back(
    transform: ActionTransform, batch: FlatBatch, spec: BatchSpec
) -> tuple[FlatBatch, np.ndarray]:
    """A transformed batch, and the actions of its last step after the inverse; checks types."""
    given = {key: array.copy() for key, array in batch.items()}
    after = transform.apply(batch, spec, None)
    declared = transform.spec_after(spec)
    assert after.keys() == declared.keys()
    for key, array in after.items():
        assert (str(array.dtype), array.shape) == (declared[key].dtype, declared[key].shape)
        np.testing.assert_array_equal(batch[key], given[key])  # inputs are not modified
    back = transform.invert(after[ACTION][:, -1], batch, spec)
    assert back.dtype == np.float32
    assert back.shape == batch[ACTION][:, -1].shape
    return after, back
