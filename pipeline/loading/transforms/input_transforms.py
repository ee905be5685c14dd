"""Transforms of observations: rotations, noise, and observations that some samples lack.

`StateNoise` and `DropObservation` are random and change training alone: without draws, at rollout
and for statistics, they return the batch as it is. The draws of a sample depend on the seed, the
transform's place in `DataConfig.transforms` and the sample's index in the run, and on nothing else
in its batch.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from pipeline.config_checks import Problem, check
from pipeline.data.rotations import Representation, convert_rotation, num_values
from pipeline.errors import UserError, did_you_mean
from pipeline.loading.batch import BatchSpec, FlatBatch
from pipeline.loading.transforms.action_dims import check_different, check_names, where_of
from pipeline.loading.transforms.rotation_layout import (
    RotationLayout,
    check_stated,
    rotation_names,
    rotations_of,
    with_positive_real,
)
from pipeline.loading.transforms.transform import Draws, dims_at

_MASKS = "observation/pad_mask_dict/"


@dataclasses.dataclass(frozen=True)
class ConvertObservationRotation:
    """Writes a rotation of an observation's vector in another representation.

    Of the two quaternions of a rotation it writes the one whose real part is not negative. An
    observation that is missing stays zero.
    """

    rotation: tuple[str, ...]
    """The dimensions of the rotation, in the order of the representation."""
    source: Representation
    """Representation of the rotation in the dataset."""
    target: Representation
    """Representation that the model reads."""
    observation: str = "proprio"
    """Name of the vector."""
    prefix: str = ""
    """Start of the new names, such as `left_` for `left_rot6d_0`, which keeps those of two arms
    apart."""

    def __post_init__(self) -> None:
        """Checks the number of names."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_names(self, "rotation", num_values(self.source))

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        """Returns the types with the new dimensions where the first old one was.

        Raises:
          UserError: There is no such vector of float32, it lacks a dimension, or a new name is
            taken.
        """
        key = f"observation/{self.observation}"
        after = self._layout(spec).leaf_after(spec[key])
        check_different(self, after.dims, key)
        return spec | {key: after}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        """Converts the rotations of all steps, in float64; the result is float32 (b w d).

        Raises:
          UserError: Values are no rotation, such as a quaternion of zeros.
        """
        del draws
        key, layout = f"observation/{self.observation}", self._layout(spec)
        values = batch[key]
        # Zeros of a missing observation are no rotation.
        is_read = batch[_MASKS + self.observation][:, -values.shape[1] :]
        rotation = np.zeros((*values.shape[:2], len(layout.names)))
        with rotations_of(self, key):
            old = layout.taken(values)[is_read]
            turned = convert_rotation(old, self.source, "quaternion_xyzw")
            turned = with_positive_real(turned, "quaternion_xyzw")
            rotation[is_read] = convert_rotation(turned, "quaternion_xyzw", self.target)
        return batch | {key: layout.replaced(values, rotation)}

    def _layout(self, spec: BatchSpec) -> RotationLayout:
        """Finds the rotation in the vector."""
        key = f"observation/{self.observation}"
        old = dims_at(spec, key, self.rotation, where_of(self, "rotation"))
        _check_vector(self, spec)
        leaf = spec[key]
        check_stated(self, leaf, old, self.source, key)
        same = self.target == self.source
        names = self.rotation if same else rotation_names(self.prefix, self.target)
        return RotationLayout(old, names, self.target, leaf.shape[-1])


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
        dims = dims_at(spec, key, [name for name, _ in self.std], where_of(self, "std"))
        _check_vector(self, spec)
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
            _check_masked(spec, name, where_of(self, "observations"))
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


def _check_vector(transform: ConvertObservationRotation | StateNoise, spec: BatchSpec) -> None:
    """Checks that the observation of a transform is a vector of float32 with a pad mask."""
    _check_masked(spec, transform.observation, where_of(transform, "observation"))
    leaf = spec[f"observation/{transform.observation}"]
    if leaf.dtype != "float32":
        raise UserError(
            where=where_of(transform, "observation"),
            expected="a vector of float32",
            found=f"observation/{transform.observation} {leaf}",
            remedy="Counts and categories have neither noise nor rotations: leave it out.",
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
