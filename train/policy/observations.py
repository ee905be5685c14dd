"""Checks what environments show against a policy's training data, and makes arrays of it."""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pipeline.errors import UserError
from pipeline.loading.batch import DATASET_INDEX, KEEPS_TEXT, BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.samples.windows import history_indices
from train.update.image_resizing import resize_images

Observation = Mapping[str, Any]
"""An environment's observation at one step, by name below `observation/`: images uint8 (y x 3), in
the size and orientation of the dataset; depth in metres, of any floating dtype, (y x 1), 0 where
there is no reading; vectors and tensors in the dataset's units, not normalised. Names that the
model does not read are ignored."""

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


_INSTRUCTION, _GOAL = "an instruction", "goal images"
TASKS = {
    "language_conditioned": (_INSTRUCTION,),
    "image_conditioned": (_GOAL,),
    "multimodal": (_INSTRUCTION, _GOAL),
}
"""Kinds of task that a policy takes, by the conditioning that it was trained with."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of an environment."""

    text: str
    """Instruction; empty if goal images define the task."""
    goal: Mapping[str, np.ndarray]
    """Goal image of each camera, uint8 (y x 3), at the stored size; empty with an instruction."""

    def __post_init__(self) -> None:
        check_task(self.text, self.goal)


def check_task(text: object, goal: object) -> None:
    """Raises a `UserError` where a task is given as other types than a text and goal images."""
    if not isinstance(text, str) or not isinstance(goal, Mapping):
        found = goal if isinstance(text, str) else text
        raise UserError(
            where="policy, task",
            expected="an instruction as text, and goal images by camera",
            found=f"{type(found).__name__} {found!r}"[:80],
            remedy='Write, for example, policy.reset(0, "open the drawer").',
        )


Steps = tuple[dict[str, np.ndarray], ...]
"""The last steps of an environment as they are read, oldest first; at most the window size."""


@dataclasses.dataclass
class History:
    """The last steps of one environment."""

    task: Task
    """Current task of the environment."""
    steps: Steps = ()
    """Its last steps."""

    def push(self, step: dict[str, np.ndarray], window_size: int) -> None:
        """Adds a step, in place of the oldest one if there are as many as the window has."""
        self.steps = (*self.steps, step)[-window_size:]


def check_kind(task: Task, conditioning: str) -> None:
    """Raises a `UserError` if a policy of a conditioning was not trained on such a task."""
    kinds = TASKS[conditioning]
    given = {_INSTRUCTION: task.text, _GOAL: task.goal}
    found = " and ".join(kind for kind, value in given.items() if value)
    # An instruction may be empty.
    if (found or _INSTRUCTION) not in kinds:
        raise UserError(
            where="task",
            expected=f"{' or '.join(kinds)}, as the policy was trained {conditioning}",
            found=found or "none",
            remedy="Give one kind of task, one that it was trained on.",
        )


def check_observations(
    observations: Mapping[int, Observation],
    expected: Mapping[str, LeafSpec | None],
    *,
    resize: bool = False,
) -> dict[int, dict[str, np.ndarray]]:
    """Returns observations as new arrays of the expected dtype and shape, by environment.

    Vectors and tensors are cast, unless that changes more than the last digit of a float. Images
    must be uint8 and, unless they are resized, have the stored size. Depth must be floats, since
    integers are mostly millimetres.

    Args:
      observations: Observations by environment.
      expected: What one step must contain, by name; None: an image of any size.
      resize: Whether to resize images of another size; otherwise they are errors.

    Raises:
      UserError: Something is missing or does not fit; it lists everything, for all environments.
    """
    # By problem, so that one mistake in all environments is listed once.
    problems: dict[str, list[int]] = {}
    for env, observation in observations.items():
        for problem in find_problems(observation, expected, resize=resize):
            problems.setdefault(problem, []).append(env)
    if problems:
        raise UserError(
            where="observation",
            expected=describe(expected),
            found="; ".join(_where(envs, observations) + p for p, envs in problems.items()),
            remedy=REMEDY,
        )
    return {
        env: {name: _to_array(observation[name], leaf) for name, leaf in expected.items()}
        for env, observation in observations.items()
    }


def check_environments(observations: Any) -> None:
    """Checks that there is one observation per environment number, whatever the observations hold.

    Raises:
      UserError: It is one observation alone, or something else.
    """
    found = f"a {type(observations).__name__}"
    if isinstance(observations, Mapping):
        others = {env: one for env, one in observations.items() if not isinstance(one, Mapping)}
        found = ", ".join(f"{env!r}: {type(one).__name__}" for env, one in others.items())
    if found:
        raise UserError(
            where="observations",
            expected="a dictionary with one observation, itself a dictionary, per environment "
            "number",
            found=found,
            remedy="Number the environments: policy.infer({0: observation}).",
        )


def read_histories(
    histories: Sequence[History], before: BatchSpec, keys: Sequence[str], names: Sequence[str]
) -> FlatBatch:
    """Returns the arrays that the loader reads from a dataset, with the values as they are.

    Args:
      histories: Histories of the environments, one row each; all have observed a step.
      before: Types of a batch of one environment before the transforms.
      keys: Paths of the arrays of observations, their masks and goals, as `PolicySpec.read`.
      names: The observations that the steps have; others are zeros, and False in their masks.
    """
    size = len(histories)
    latest = np.array([len(history.steps) - 1 for history in histories])
    window_size = before["observation/timestep_pad_mask"].shape[1]
    # (b w): places in the histories; the first step repeats before it, as in training.
    places, is_real = history_indices(latest, window_size)
    leaves = {key: before[key] for key in keys}
    batch = {key: np.zeros((size, *leaf.shape[1:]), leaf.dtype) for key, leaf in leaves.items()}
    batch |= {
        DATASET_INDEX: np.zeros(size, np.int32),
        KEEPS_TEXT: np.array([not history.task.goal for history in histories]),
        "task/task_index": np.arange(size, dtype=np.int32),
        "observation/timestep_pad_mask": is_real,
    }
    for name in names:
        array = batch[f"observation/{name}"]
        # A shorter window is real only at its end.
        length = array.shape[1]
        batch[f"observation/pad_mask_dict/{name}"][:, -length:] = True
        for row, history in enumerate(histories):
            for column, place in enumerate(places[row, -length:].tolist()):
                array[row, column] = history.steps[place][name]
    for row, history in enumerate(histories):
        for camera, image in history.task.goal.items():
            batch[f"task/{camera}"][row] = image
    return batch


def find_problems(
    observation: Observation, expected: Mapping[str, LeafSpec | None], *, resize: bool
) -> list[str]:
    """Returns what is missing or does not fit in an observation, such as `proprio: missing`."""
    found = {n: _problem(observation.get(n), leaf, resize=resize) for n, leaf in expected.items()}
    return [f"{name}: {problem}" for name, problem in found.items() if problem]


def describe(expected: Mapping[str, LeafSpec | None]) -> str:
    """Returns a text such as `image_primary uint8[256,256,3], proprio float32[8]`."""
    return ", ".join(f"{name} {describe_one(leaf)}" for name, leaf in expected.items())


def describe_one(leaf: LeafSpec | None) -> str:
    """Returns the type of one step of an observation, such as `float32[480,640,1] in metres`."""
    if leaf is None:
        return "uint8[y,x,3]"
    return f"{leaf} in metres" if leaf.is_depth else str(leaf)


def _where(envs: Sequence[int], observations: Collection[int]) -> str:
    if len(observations) == 1:
        return ""
    if len(envs) == len(observations):
        return "every environment, "
    return f"environment{'s' * (len(envs) > 1)} {', '.join(map(str, envs))}, "


def _problem(value: Any, leaf: LeafSpec | None, *, resize: bool) -> str:
    """Returns what is wrong with a value; empty if it fits."""
    if value is None:
        return "missing"
    # NumPy would make an array of a text.
    if isinstance(value, str | bytes):
        return f"a {type(value).__name__}"
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return f"a {type(value).__name__} that is not an array"
    found = LeafSpec(str(array.dtype), array.shape)
    if leaf is None or leaf.is_image:
        # An empty array cannot be resized.
        fits = found.is_image and array.size and max(array.shape) <= LARGEST_SIDE
        return "" if found == leaf or (fits and (leaf is None or resize)) else str(found)
    if array.dtype.kind not in _NUMBERS or array.shape != leaf.shape:
        return str(found)
    problem = _problem_of_numbers(array, leaf)
    return problem and f"{found} {problem}"


def _problem_of_numbers(array: np.ndarray, leaf: LeafSpec) -> str:
    """Returns what is wrong with the numbers of a vector, tensor or depth; empty if they fit."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(leaf.dtype)
    # Finite as float64 may be infinite as float32.
    if not (np.isfinite(array) & np.isfinite(cast)).all():
        return f"with values that are not finite as {leaf.dtype}"
    if leaf.is_depth:
        return _problem_of_depth(array)
    if cast.dtype.kind == "f" or (cast == array).all():
        return ""
    return f"with values that {leaf.dtype} does not hold, such as {array[cast != array][0]}"


def _problem_of_depth(array: np.ndarray) -> str:
    """Returns what is wrong with depth; empty if it is in metres."""
    # Millimetres, which cameras give as uint16, would be walls at a thousand times the distance.
    if array.dtype.kind != "f":
        return "instead of floats in metres: divide millimetres by 1000"
    low, high = float(array.min()), float(array.max())
    # Half a millimetre for the rounding of float16 and float32.
    if low >= 0 and high <= LARGEST_DEPTH_M + 0.0005:
        return ""
    return (
        f"with values from {low:g} to {high:g} instead of metres, 0 to {LARGEST_DEPTH_M}: "
        "divide millimetres by 1000"
    )


def _to_array(value: Any, leaf: LeafSpec | None) -> np.ndarray:
    """Returns a new array, as the caller may reuse its own; an image is resized where it has to."""
    if leaf is None:
        return np.array(value)
    array = np.array(value, leaf.dtype)
    if array.shape == leaf.shape:
        return array
    return np.asarray(_resizer(array.shape, leaf.shape)(array))


# A handful of cameras; each size costs a compilation.
@functools.lru_cache(maxsize=16)
def _resizer(found: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    """Returns the compiled resize of training for images (y x 3) of one size; the last are kept."""
    image = jax.ShapeDtypeStruct(found, np.uint8)
    return jax.jit(lambda image: resize_images(image, *wanted[:2])).lower(image).compile()
