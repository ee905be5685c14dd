"""What a transform is: a frozen dataclass in `DataConfig.transforms`, of the library or a user's.

A transform changes either what the model reads or the actions that it learns, never both:

| it changes | method `invert` | in training      | at rollout                                |
| ---------- | --------------- | ---------------- | ----------------------------------------- |
| inputs     | no              | `apply`          | `apply`                                   |
| actions    | yes             | `apply`          | `invert`, in the reverse order            |

The loader and the policy call the same objects, after reading and before normalising. Grippers are
1 = open and 0 = close there; everything else has the dataset's units.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.special import ndtri

from pipeline.errors import UserError, did_you_mean
from pipeline.loading.batch import BatchSpec, FlatBatch


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of one transform: those of a sample depend on the seed and its index alone."""

    seed: int
    """Seed of the loader."""
    place: int
    """Place of the transform in `DataConfig.transforms`."""
    index: np.ndarray
    """int (b): index of each sample in the run."""

    def uniform(self, count: int) -> np.ndarray:
        """Returns uniform numbers in [0, 1), float64 (b count).

        Source: Philox4x64-10 (Salmon et al. 2011), whose bits NumPy keeps between releases.
        """
        # Key 0 is that of the loader's own draws; the counter's second word is the sample.
        key = np.array([self.seed, self.place + 1], np.uint64)
        words = [
            np.random.Philox(key=key, counter=np.array([0, i, 0, 0], np.uint64)).random_raw(count)
            for i in self.index.tolist()
        ]
        # The upper 53 bits fill a float64's mantissa exactly: no value rounds up to 1.
        return (np.array(words, np.uint64).reshape(-1, count) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """Returns standard normal numbers, float64 (b count)."""
        # Half a step up: the inverse of 0 is minus infinity.
        return ndtri(self.uniform(count) + 2.0**-54)


@runtime_checkable
class Transform(Protocol):
    """A change of what the model reads, the same in training and at rollout."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types of the arrays after the transform, and the names of their dimensions.

        Args:
          spec: Those before it, by path, such as `observation/proprio`, with the batch axis:
            observations are (b w ...), the action is (b w h a).

        Raises:
          UserError: The transform does not fit the arrays.
        """
        ...

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Returns another batch; the given one and its arrays are not modified.

        At rollout a batch has no action, and no mask of one.

        Args:
          batch: Arrays by path, of the types in `spec`.
          spec: The types before the transform.
          draws: Random numbers for this batch; None: at rollout and for statistics, where a
            random transform returns the batch as it is.
        """
        ...


@runtime_checkable
class ActionTransform(Transform, Protocol):
    """A change of actions: `action` and `action_pad_mask`, and nothing else."""

    def invert(self, action: np.ndarray, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
        """Returns predicted actions as they were before the transform, float32 (b h a).

        Args:
          action: Actions after the transform, float32 (b h a), for the last step of the window.
          batch: The inputs as they are where the transform is in the chain.
          spec: The types before the transform.
        """
        ...


def dims_at(spec: BatchSpec, key: str, names: Sequence[str], where: str) -> list[int]:
    """Returns the places of named dimensions in the last axis of an array.

    Args:
      spec: The types before the transform.
      key: Path of the array.
      names: Names to look for.
      where: Name of the transform and its field, for the error.

    Raises:
      UserError: There is no such array, or it has no such dimension.
    """
    if key not in spec:
        vectors = [name for name, leaf in spec.items() if leaf.dims and leaf.dtype != "bool"]
        raise UserError(
            where=where,
            expected="one of the vectors " + ", ".join(vectors),
            found=key,
            remedy=did_you_mean(key, vectors) + "Add it to data.observations.",
        )
    dims = spec[key].dims
    unknown = [name for name in names if name not in dims]
    if unknown:
        raise UserError(
            where=where,
            expected=f"dimensions of {key}, which are {', '.join(dims) or 'none'}",
            found=", ".join(unknown),
            remedy=did_you_mean(unknown[0], dims) + "Name them as `octograin inspect` shows them.",
        )
    return [dims.index(name) for name in names]
