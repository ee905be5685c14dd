"""Transforms of observations: noise, and observations that are missing in some samples.

Both are random and change training alone: without draws, at rollout and for statistics, they return
the batch as it is. The draws of a sample depend on the seed, the transform's place in
`DataConfig.transforms` and the sample's index in the run, and on nothing else in its batch.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from pipeline.config_checks import Problem, check
from pipeline.errors import UserError, did_you_mean
from pipeline.loading.batch import BatchSpec, FlatBatch
from pipeline.loading.transforms.transform import Draws, dims_at

_MASKS = "observation/pad_mask_dict/"


@dataclasses.dataclass(frozen=True)
class StateNoise:
    """Adds Gaussian noise to dimensions of a vector, in the dataset's units.

    Every step of a window has noise of its own, like that of a sensor, so differences between steps
    are noisy as well. Steps that are missing stay zero.

    Actions that become relative to this state before the noise keep their true differences; after
    it, they lead from the noisy state to where the robot went.
    """

    observation: str
    """Name of the vector, such as `proprio`."""
    std: tuple[tuple[str, float], ...]
    """Standard deviation of the noise by dimension, such as `(("x_m", 0.005), ("y_m", 0.005))`. All
    other dimensions stay as they are. Numbers of one rotation, such as a quaternion's, are no
    rotation once they have noise of their own; angles stay one."""

    def __post_init__(self) -> None:
        """Checks the names and the deviations."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        names = [name for name, _ in self.std]
        if not names or len(set(names)) < len(names):
            yield Problem(
                "std",
                "one deviation or more, each of another dimension",
                ", ".join(names) or "none",
                "Name dimensions as `octograin inspect` shows them.",
            )
        for name, std in self.std:
            if not 0 < std < math.inf:
                yield Problem(
                    "std",
                    f"a finite number above 0 for {name}",
                    std,
                    "Give it in the dataset's unit, or leave the dimension out.",
                )

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the same types.

        Raises:
          UserError: There is no such vector of float32, or it has no such dimension.
        """
        self._dims(spec)
        return spec

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Adds the noise, in float64; the result is float32 (b w d)."""
        key = f"observation/{self.observation}"
        if draws is None or key not in batch:
            return batch
        values = batch[key].copy()
        num_steps, std = values.shape[1], np.array([std for _, std in self.std])
        noise = draws.normal(num_steps * len(std)).reshape(-1, num_steps, len(std)) * std
        # A missing observation is zeros, which the model may know by.
        noise *= batch[_MASKS + self.observation][:, -num_steps:, None]
        dims = self._dims(spec)
        values[..., dims] = values[..., dims].astype(np.float64) + noise
        return batch | {key: values}

    def _dims(self, spec: BatchSpec) -> list[int]:
        """Places of the dimensions that get noise."""
        key = f"observation/{self.observation}"
        dims = dims_at(spec, key, [name for name, _ in self.std], "StateNoise.std")
        _check_masked(spec, self.observation, "StateNoise.observation")
        if spec[key].dtype != "float32":
            raise UserError(
                where="StateNoise.observation",
                expected="a vector of float32",
                found=f"{key} {spec[key]}",
                remedy="Noise has no meaning for counts and categories: leave it out.",
            )
        return dims


@dataclasses.dataclass(frozen=True)
class DropObservation:
    """Hides observations in some samples, so that a model learns to act without them.

    A hidden camera, depth image or vector is what it is where the dataset lacks it: zeros, and
    False in its pad mask, in the whole window. A camera's goal image is hidden with it; a sample
    whose task is given by that image alone then has no task.
    """

    observations: tuple[str, ...]
    """Names of the observations; each is hidden independently of the others."""
    probability: float
    """Probability that an observation is hidden in a sample."""

    def __post_init__(self) -> None:
        """Checks the names and the probability."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        names = self.observations
        if not names or len(set(names)) < len(names):
            yield Problem(
                "observations",
                "one name or more, each once",
                ", ".join(names) or "none",
                "Name some of data.observations.",
            )
        if not 0 <= self.probability <= 1:
            yield Problem(
                "probability",
                "0 to 1",
                self.probability,
                "0.1 hides each observation in a tenth of the samples.",
            )

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the same types.

        Raises:
          UserError: There is no such observation.
        """
        for name in self.observations:
            _check_masked(spec, name, "DropObservation.observations")
        return spec

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Hides the observations that are drawn."""
        del spec
        if draws is None:
            return batch
        # (b n): one draw per sample and observation
        is_hidden = draws.uniform(len(self.observations)) < self.probability
        hidden = {}
        for name, rows in zip(self.observations, is_hidden.T, strict=True):
            # Copied only where something changes: an image of a batch has megabytes.
            keys = _arrays_of(name) if rows.any() else ()
            for key in filter(batch.__contains__, keys):
                hidden[key] = batch[key].copy()
                # False in a mask
                hidden[key][rows] = 0
        return batch | hidden


def _arrays_of(name: str) -> tuple[str, ...]:
    """Paths of an observation, of its goal image and of their masks."""
    return (
        f"observation/{name}",
        _MASKS + name,
        f"task/{name}",
        f"task/pad_mask_dict/{name}",
    )


def _check_masked(spec: BatchSpec, name: str, where: str) -> None:
    """Checks that there is an observation, with a mask of the steps that have it."""
    masked = [key.removeprefix(_MASKS) for key in spec if key.startswith(_MASKS)]
    if name not in masked or f"observation/{name}" not in spec:
        raise UserError(
            where=where,
            expected="an observation with a pad mask, of " + (", ".join(masked) or "none"),
            found=name,
            remedy=did_you_mean(name, masked) + "Add it to data.observations.",
        )
