"""Checks environments' observations against a policy's training data; lists all mismatches."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec

Observation = Mapping[str, Any]
"""An environment's observation at one step, by name below `observation/`: images uint8 (y x 3), in
the size and orientation of the dataset; depth in metres, of any floating dtype, (y x 1), 0 where
there is no reading; vectors and tensors in the dataset's units, not normalised. Names that the
model does not read are ignored."""

Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
"""Resizes an image (y x 3) to the shape in which images are stored."""

IMAGE = "uint8"
REMEDY = (
    "Give what the policy was trained on: images uint8, in the stored size and orientation; "
    "vectors in the dataset's units, not normalised."
)
LARGEST_DEPTH_M = 65.535
"""The largest depth that a dataset can hold."""
LARGEST_SIDE = 8192
"""Longest side in pixels of an image to be resized: the memory for resizing grows with it, and no
camera has more pixels."""
_NUMBERS = "fiub"


def check_observations(
    observations: Mapping[int, Observation],
    expected: Mapping[str, LeafSpec | None],
    resize: Resize | None = None,
) -> dict[int, dict[str, np.ndarray]]:
    """Returns observations as arrays of a batch's dtype and shape, by environment.

    Vectors and tensors are cast, unless that changes more than the last digit of a float. Images
    must be uint8 and, unless they are resized, have the stored size. Depth must be floats, since
    integers are mostly millimetres.

    Args:
      observations: Observations by environment.
      expected: What one step must contain, by name; None: an image of any size.
      resize: Resizes an image of another size; None: other sizes are errors.

    Raises:
      UserError: Something is missing or does not fit; it lists everything, for all environments.
    """
    # By problem, so that one mistake in all environments is listed once.
    problems: dict[str, list[int]] = {}
    for env, observation in observations.items():
        for problem in find_problems(observation, expected, any_size=resize is not None):
            problems.setdefault(problem, []).append(env)
    if problems:
        raise UserError(
            where="observation",
            expected=describe(expected),
            found="; ".join(_where(envs, observations) + p for p, envs in problems.items()),
            remedy=REMEDY,
        )
    return {
        env: {name: _fitted(observation[name], spec, resize) for name, spec in expected.items()}
        for env, observation in observations.items()
    }


def check_environments(observations: Any) -> None:
    """Checks that there is one observation per environment number, whatever the observations hold.

    Raises:
      UserError: It is one observation alone, or something else.
    """
    if not isinstance(observations, Mapping):
        found = f"a {type(observations).__name__}"
    else:
        wrong = [
            f"{env!r}: {type(value).__name__}"
            for env, value in observations.items()
            if not isinstance(value, Mapping)
        ]
        if not wrong:
            return
        found = ", ".join(wrong)
    raise UserError(
        where="observations",
        expected="a dictionary with one observation, itself a dictionary, per environment number",
        found=found,
        remedy="Number the environments: policy.infer({0: observation}).",
    )


def find_problems(
    observation: Observation, expected: Mapping[str, LeafSpec | None], *, any_size: bool
) -> list[str]:
    """Returns what is missing or does not fit, such as `proprio: missing`, by environment."""
    return [
        f"{name}: {problem}"
        for name, spec in expected.items()
        for problem in _problems(observation.get(name), spec, any_size=any_size)
    ]


def describe(expected: Mapping[str, LeafSpec | None]) -> str:
    """Returns a text such as `image_primary uint8[256,256,3], proprio float32[8]`."""
    return ", ".join(f"{name} {describe_one(spec)}" for name, spec in expected.items())


def describe_one(spec: LeafSpec | None) -> str:
    """Returns the type of one step of an observation, such as `float32[480,640,1] in metres`."""
    if spec is None:
        return "uint8[y,x,3]"
    return f"{spec} in metres" if spec.is_depth else str(spec)


def _where(envs: Sequence[int], observations: Collection[int]) -> str:
    if len(observations) == 1:
        return ""
    if len(envs) == len(observations):
        return "every environment, "
    return f"environment{'s' * (len(envs) > 1)} {', '.join(map(str, envs))}, "


def _problems(value: Any, spec: LeafSpec | None, *, any_size: bool) -> Iterator[str]:
    """Yields what is wrong with a value."""
    if value is None:
        yield "missing"
        return
    # NumPy would make an array of a text.
    if isinstance(value, str | bytes):
        yield f"a {type(value).__name__}"
        return
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        yield f"a {type(value).__name__} that is not an array"
        return
    found = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    # None: an image that only the token encoder reads, of any size.
    if spec is None or _is_image(spec):
        is_image = array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] == 3
        if spec is not None and not any_size:
            fits = array.shape == spec.shape
        else:
            fits = max(array.shape, default=0) <= LARGEST_SIDE
        # An empty array has no maximum and cannot be resized.
        if not (is_image and fits and array.size):
            yield found
    elif array.dtype.kind not in _NUMBERS or array.shape != spec.shape:
        yield found
    else:
        yield from _number_problems(array, spec, found)


def _number_problems(array: np.ndarray, spec: LeafSpec, found: str) -> Iterator[str]:
    """Yields what is wrong with the numbers of a vector, tensor or depth of the right shape."""
    if not is_finite_as(array, spec.dtype):
        yield f"{found} with values that are not finite as {spec.dtype}"
    elif spec.is_depth:
        yield from _depth_problems(array, found)
    elif np.dtype(spec.dtype).kind != "f":
        with np.errstate(invalid="ignore"):
            changed = array[array.astype(spec.dtype) != array]
        if changed.size:
            yield f"{found} with values that {spec.dtype} does not hold, such as {changed[0]}"


def _depth_problems(array: np.ndarray, found: str) -> Iterator[str]:
    """Yields what is wrong with depth of the right shape."""
    # Millimetres, which cameras give as uint16, would be walls at a thousand times the distance.
    if array.dtype.kind != "f":
        yield f"{found} instead of floats in metres: divide millimetres by 1000"
        return
    low, high = float(array.min()), float(array.max())
    # Half a millimetre for the rounding of float16 and float32.
    if low < 0 or high > LARGEST_DEPTH_M + 0.0005:
        yield (
            f"{found} with values from {low:g} to {high:g} instead of metres, 0 to "
            f"{LARGEST_DEPTH_M}: divide millimetres by 1000"
        )


def _is_image(spec: LeafSpec) -> bool:
    """Returns whether it is RGB; other arrays of uint8 are tensors, such as a mask (y x 1)."""
    return spec.dtype == IMAGE and spec.shape[2:] == (3,)


def is_finite_as(array: np.ndarray, dtype: str) -> bool:
    """Returns whether all values of an array are finite, also after a cast to a dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        # Finite as float64 may be infinite as float32.
        return bool(np.isfinite(array).all() and np.isfinite(array.astype(dtype)).all())


def _fitted(value: Any, spec: LeafSpec | None, resize: Resize | None) -> np.ndarray:
    if spec is None:
        return np.asarray(value)
    if not _is_image(spec):
        # A copy: the caller may reuse its array.
        return np.array(value, spec.dtype)
    image = np.array(value)  # a copy: the caller may reuse its array
    return image if image.shape == spec.shape or resize is None else resize(image, spec.shape)
