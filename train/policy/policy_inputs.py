"""Turns environments' observations into the batch that the model reads, as the loader does.

What is read differs: the loader reads records, the policy keeps the last steps of its environments.
From there on both run the same transforms on the same arrays.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from pipeline.data.schema import nest
from pipeline.errors import UserError
from pipeline.loading.batch import FlatBatch, LeafSpec
from pipeline.loading.device import resize_images
from pipeline.loading.text import Encode, tokenize
from pipeline.loading.transforms.batch_transforms import LookUpTask
from pipeline.loading.transforms.transform_chain import TransformChain
from pipeline.loading.window_reader import DATASET_INDEX, KEEPS_TEXT
from train.policy.observations import Observation, check_environments, check_observations
from train.policy.policy_spec import PolicySpec


@runtime_checkable
class TokenEncoder(Protocol):
    """Computes at rollout the tokens that a dataset's column held in training."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Returns the names of the observations whose images it reads."""
        ...

    def __call__(self, images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Encodes images to tokens (b n d) by feature key, such as `observation/vggt_tokens`.

        Args:
          images: Images of each camera, uint8 (b y x 3), in the order of `cameras`; b is the same
            in every call.
        """
        ...


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


@dataclasses.dataclass
class History:
    """The last steps of one environment."""

    task: Task
    """Current task of the environment."""
    steps: collections.deque[dict[str, np.ndarray]]
    """Steps as they are read, oldest first; at most the window size."""

    def window(self, name: str, length: int) -> np.ndarray:
        """Returns the last steps (w ...) of an observation; the first step is repeated as padding.

        Source: `pipeline.loading.samples.windows.history_indices`.
        """
        # Before the episode: the first step repeats, as in training.
        padding = max(length - len(self.steps), 0)
        last = list(self.steps)[-length:]
        return np.stack([step[name] for step in (*[last[0]] * padding, *last)])

    def mask(self, length: int) -> np.ndarray:
        """Returns bool (w): True where a step is real."""
        # Real steps are the last ones of the window.
        return np.arange(length) >= length - len(self.steps)


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """A batch of the model, and the way back from its actions."""

    arrays: dict[str, Any]
    """Nested arrays that the model reads, one row per environment."""
    chain: TransformChain
    """The transforms that made them."""
    traced: list[FlatBatch]
    """The batch before each transform, and after the last."""

    def restore(self, predicted: np.ndarray) -> np.ndarray:
        """Returns predicted chunks in the dataset's units, 1 = open: float32 (b h a)."""
        return self.chain.invert(predicted, self.traced)


class PolicyInputs:
    """Keeps environments' histories and makes batches of them.

    Args:
      spec: What the model reads.
      encode: Returns the token ids of a text.
      encoder: Computes the tokens, if the model reads any.
      batch_size: Number of environments that the encoder processes at once.
      resize: Whether to resize images of other sizes to the stored size; otherwise they are errors.

    Raises:
      UserError: The model reads tokens, and there is no encoder; or the conditioning needs goal
        images, and there is no camera.
    """

    def __init__(
        self,
        spec: PolicySpec,
        encode: Encode,
        encoder: TokenEncoder | None = None,
        *,
        batch_size: int = 1,
        resize: bool = False,
    ) -> None:
        self.spec = spec
        self._encode = encode
        self._encoder = _needed_encoder(spec, encoder)
        self._batch_size = batch_size
        self._resize = _resize if resize else None
        self._histories: dict[int, History] = {}

    @property
    def expected(self) -> dict[str, LeafSpec | None]:
        """Returns what every observation must contain, by name; None: an image of any size."""
        cameras = self._encoder.cameras if self._encoder else ()
        # Cameras that only the encoder reads have no size that training knows.
        seen = {name: self.spec.features.get(f"observation/{name}") for name in cameras}
        return {**self.spec.observed, **seen}

    def reset(self, env: int, task: Task) -> None:
        """Clears an environment's history and gives it a task.

        Raises:
          UserError: The task does not fit; see `instruct`.
        """
        task = self._checked(task)
        # A full deque drops its oldest step.
        self._histories[env] = History(task, collections.deque(maxlen=self.spec.data.window_size))

    def instruct(self, env: int, task: Task) -> None:
        """Gives an environment another task; its history is kept.

        Raises:
          UserError: The model was not trained on this kind of task, or goal images do not fit.
        """
        self._history(env).task = self._checked(task)

    def forget(self, env: int) -> None:
        """Drops everything about an environment, if there is anything."""
        self._histories.pop(env, None)

    def task(self, env: int) -> Task:
        """Returns the task of an environment."""
        return self._history(env).task

    def push(self, observations: Mapping[int, Observation], *, latest: bool = True) -> None:
        """Adds a step to the history of each environment: of all of them, or of none.

        Args:
          observations: Observations by environment.
          latest: Whether a batch of this step will be made. Otherwise it is only part of the
            history, and tokens that are read only for the current step are not computed.

        Raises:
          UserError: Observations do not fit, or an environment has no task.
        """
        check_environments(observations)
        # All are looked up and checked before any is changed.
        histories = [self._history(env) for env in observations]
        rows = list(check_observations(observations, self.expected, self._resize).values())
        # The longest window of tokens: with 1, only the step of a prediction needs them.
        longest = max(map(self.spec.data.window_of, self.spec.tokens), default=0)
        if self._encoder and (latest or longest > 1):
            rows = self._with_tokens(self._encoder, rows)
        for history, row in zip(histories, rows, strict=True):
            seen = {name: self.spec.resize(name, value) for name, value in row.items()}
            history.steps.append(seen)

    def clear(self, env: int) -> None:
        """Drops the steps of a history."""
        self._history(env).steps.clear()

    def batch(self, envs: Sequence[int]) -> ModelInputs:
        """Returns the batch of environments that have observed a step: one row each."""
        histories = [self._history(env) for env in envs]
        traced = self.spec.chain.trace(self._read(histories))
        batch = traced[-1]
        if self.spec.model.language is not None:
            texts = [history.task.text for history in histories]
            table = tokenize(texts, self._encode, self.spec.model.language.max_length)
            # The loader's own transform; each environment has its row of the table.
            batch = LookUpTask(table, (np.arange(len(texts), dtype=np.int32),))(batch)
        # In the order of `leaves`, and nothing else.
        read = {key: batch[key] for key in self.spec.leaves}
        # A model without observations or without a task still gets both keys.
        arrays = {"observation": {}, "task": {}} | nest(read)
        return ModelInputs(arrays, self.spec.chain, traced)

    def _read(self, histories: Sequence[History]) -> FlatBatch:
        """Returns the arrays that the loader reads from a dataset, with the values as they are."""
        data, size = self.spec.data, len(histories)
        window = data.window_size
        batch = {
            DATASET_INDEX: np.zeros(size, np.int32),
            KEEPS_TEXT: np.array([not history.task.goal for history in histories]),
            "task/task_index": np.arange(size, dtype=np.int32),
            "observation/timestep_pad_mask": np.stack([h.mask(window) for h in histories]),
        }
        for name in self.spec.read:
            key = f"observation/{name}"
            leaf = self.spec.before[key]
            # A shorter window is real only at its end.
            is_read = np.arange(window) >= window - leaf.shape[1]
            # What the dataset lacks is masked zeros, as in training.
            if name in self.spec.missing:
                batch[key] = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
                is_read[:] = False
            else:
                batch[key] = np.stack([h.window(name, leaf.shape[1]) for h in histories])
            batch[f"observation/pad_mask_dict/{name}"] = np.tile(is_read, (size, 1))
        for camera in self.spec.cameras if data.has_goals else ():
            leaf = self.spec.before[f"task/{camera}"]
            # Without goal images zeros, which `ImageTokenizer` reads as "no goal".
            empty = np.zeros(leaf.shape[1:], leaf.dtype)
            batch[f"task/{camera}"] = np.stack([h.task.goal.get(camera, empty) for h in histories])
        return batch

    def _history(self, env: int) -> History:
        if env not in self._histories:
            raise UserError(
                where=f"environment {env}",
                expected="a task",
                found="none: it was not reset",
                remedy="Call reset(env, instruction) at the start of its episode.",
            )
        return self._histories[env]

    def _checked(self, task: Task) -> Task:
        """Returns the task with resized goal images, if it fits the policy."""
        conditioning = self.spec.data.conditioning
        has_goal = bool(task.goal)
        may_have = conditioning != "language_conditioned"
        # A multimodal policy takes either.
        if (has_goal and not may_have) or (not has_goal and conditioning == "image_conditioned"):
            raise UserError(
                where="task",
                expected=f"{'goal images' if may_have else 'an instruction'}, "
                f"as the policy was trained {conditioning}",
                found="goal images" if has_goal else "none",
                remedy="Give the kind of task that it was trained on.",
            )
        if has_goal and task.text:
            raise UserError(
                where="task",
                expected="an instruction or goal images: in training a sample had one of them",
                found="both",
                remedy="Leave out one of them.",
            )
        expected = {
            camera: self.spec.observed[camera]
            for camera in self.spec.cameras
            if has_goal and camera not in self.spec.missing
        }
        goal = check_observations({0: task.goal}, expected, self._resize)[0]
        return Task(task.text, {c: self.spec.resize(c, image) for c, image in goal.items()})

    def _with_tokens(
        self, encoder: TokenEncoder, rows: list[dict[str, np.ndarray]]
    ) -> list[dict[str, np.ndarray]]:
        """Adds the tokens to the rows, computed in batches of one size."""
        tokened = []
        for begin in range(0, len(rows), self._batch_size):
            part = rows[begin : begin + self._batch_size]
            # One size for all calls, because each size is compiled.
            filled = [*part, *[part[-1]] * (self._batch_size - len(part))]
            images = [np.stack([row[camera] for row in filled]) for camera in encoder.cameras]
            tokens = self._checked_tokens(encoder(images), len(filled))
            for place, row in enumerate(part):
                tokened.append(row | {name: of_name[place] for name, of_name in tokens.items()})
        return tokened

    def _checked_tokens(
        self, found: Mapping[str, np.ndarray], num_rows: int
    ) -> dict[str, np.ndarray]:
        """Checks shapes and dtypes of an encoder's tokens; returns them by name."""
        checked = {}
        for name in self.spec.tokens:
            key = f"observation/{name}"
            leaf, tokens = self.spec.features[key], found.get(key)
            shape = (num_rows, *leaf.shape)
            # Exactly: tokens of another size would be read without an error, up to the model.
            if tokens is None or tokens.shape != shape or tokens.dtype != np.dtype(leaf.dtype):
                raise UserError(
                    where=f"tokens of the encoder, {key}",
                    expected=str(LeafSpec(leaf.dtype, shape)),
                    found="none" if tokens is None else f"{tokens.dtype}{list(tokens.shape)}",
                    remedy="Use the encoder that the dataset's column was made with.",
                )
            checked[name] = np.asarray(tokens)
        return checked


def _needed_encoder(spec: PolicySpec, encoder: TokenEncoder | None) -> TokenEncoder | None:
    """Returns the encoder if the model reads tokens, else None."""
    if not spec.tokens:
        return None
    if encoder is None:
        keys = [f"observation/{name}" for name in spec.tokens]
        leaves = ", ".join(str(spec.features[key]) for key in keys)
        raise UserError(
            where=f"policy, {', '.join(keys)}",
            expected=f"an encoder, because the model reads tokens {leaves} of every step",
            found="none",
            remedy="Give as `encoder` the one that the dataset's column was made with.",
        )
    return encoder


# A handful of cameras; each size costs a compilation.
@functools.lru_cache(maxsize=16)
def _resizer(found: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    """Returns the compiled resize between two sizes; the last few sizes are cached."""
    image = jax.ShapeDtypeStruct(found, np.uint8)
    return jax.jit(lambda image: resize_images(image, *wanted[:2])).lower(image).compile()


def _resize(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resizes an image as training resizes to the model's size; compiled once per size."""
    return np.asarray(_resizer(image.shape, shape)(image))
