"""Runs an exported policy with jax and numpy alone; an exported policy holds this code.

sys.path.insert(0, "policy.zip")
from exported_policy import ExportedPolicy

policy = ExportedPolicy()
policy.reset(env, "open the drawer")            # at the start of every episode
chunks = policy.infer({env: observation})       # {env: float32 (h a)}
"""

import contextlib
import importlib
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pipeline.data.conventions import Conventions, restore_gripper
from pipeline.errors import UserError
from pipeline.loading.batch import FlatBatch, LeafSpec
from pipeline.loading.transforms.normalize_transforms import with_normalizers
from pipeline.loading.transforms.transform_chain import TransformChain
from train.exported.exported_settings import ExportedSettings
from train.exported.policy_file import load_program, read_file
from train.policy.gripper_commands import GripperCommands
from train.policy.observations import (
    TASKS,
    History,
    Observation,
    Steps,
    Task,
    check_environments,
    check_kind,
    check_observations,
    describe_one,
    read_histories,
)

TEXT_ARRAYS = ("has_text", "input_ids", "attention_mask", "embeddings")
"""Arrays with a row for each of the exported texts."""
# POLICY.zip/exported_policy/train/exported/exported_policy.py, wherever the process goes later.
_FILE = pathlib.Path(__file__).absolute().parents[3]
_NUM_ENVS = _NUM_SEEDS = 2**32
_NUM_TIMED = 10


class ExportedPolicy:
    """Acts in several environments at once; each has its own number, task and history.

    It is the policy of the file that this class was imported from, and does what
    `octograin.Policy` does, for the instructions that were exported. On a machine like that of the
    export, its chunks are bitwise identical to that policy's. It is not thread-safe.

    Args:
      seed: Seed of a diffusion head's noise.
      resize: Whether images of other sizes are resized; otherwise they are errors.

    Raises:
      ValueError: The file is corrupt, its program does not fit the jax that is installed, or the
        seed is not from 0 to 2**32 - 1.
    """

    def __init__(self, *, seed: int = 0, resize: bool = False) -> None:
        if not 0 <= seed < _NUM_SEEDS:
            raise ValueError(f"seed: expected 0 to 2**32 - 1; found {seed}")
        file = read_file(_FILE)
        settings: ExportedSettings = importlib.import_module("exported_policy.settings").SETTINGS
        self.settings = settings
        self._resize = resize
        self._program = load_program(file)
        chain = TransformChain.bind(settings.transforms, settings.before, seed=None)
        self._chain = with_normalizers(chain, settings.normalizers, seed=None)
        self._rows = {text: row for row, text in enumerate(settings.texts)}
        self._texts = {name: file.array(name) for name in TEXT_ARRAYS if self._rows}
        key = jax.random.key(seed, impl=settings.key_impl)
        self._key = np.asarray(jax.random.key_data(key))
        self._histories: dict[int, History] = {}
        # Chunks predicted since each environment's reset.
        self._counts: dict[int, int] = {}

    @property
    def instructions(self) -> tuple[str, ...]:
        """Returns the instructions that were exported; empty if the model reads none."""
        return self.settings.instructions

    @property
    def conventions(self) -> Conventions:
        """Returns what the values of observations and, with a restored gripper, of actions mean."""
        return self.settings.conventions

    @property
    def expected(self) -> Mapping[str, LeafSpec]:
        """Returns what every observation must contain, by name."""
        return self.settings.expected

    @property
    def window_size(self) -> int:
        """Returns the number of steps that the model reads, including the current one."""
        return self.settings.window_size

    @property
    def action_horizon(self) -> int:
        """Returns the number of actions per chunk."""
        return self.settings.action_horizon

    @property
    def origin(self) -> str:
        """Returns where the program was compiled: `at export` or `here`."""
        return self._program.origin

    def __str__(self) -> str:
        """What the policy reads and predicts."""
        has, steps = self.settings, self.window_size
        dims = f": {', '.join(has.action_dims)}" if has.action_dims else ""
        num_dims = has.before["action"].shape[-1]
        return "\n".join(
            [
                f"{_FILE.name}: policy of training step {has.step}, exported by octograin "
                f"{has.octograin}",
                *([f"from: {has.address}"] if has.address else []),
                f"dataset: {has.dataset}",
                f"task: {' or '.join(TASKS[has.conditioning])}",
                *(f"  {text}" for text in self.instructions),
                "observation" + (f", of which the last {steps} are read:" if steps > 1 else ":"),
                *(f"  {name:16} {describe_one(leaf)}" for name, leaf in has.expected.items()),
                f"action: float32[{self.action_horizon},{num_dims}]{dims}",
                f"program: compiled {self.origin}",
            ]
        )

    def example_observation(self) -> dict[str, np.ndarray]:
        """Returns an observation of the right keys, types and shapes; images are grey."""
        return {
            name: np.full(leaf.shape, self.settings.example[name], leaf.dtype)
            for name, leaf in self.expected.items()
        }

    def reset(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Starts an episode: clears the environment's history and its count of chunks.

        Args:
          env: The environment's number, from 0 to 2**32 - 1.
          instruction: The task as one of `instructions`.
          goal: The task as goal images of every camera, for a policy that was trained on goals.

        Raises:
          ValueError: The task or the number does not fit.
        """
        if not isinstance(env, int | np.integer) or not 0 <= env < _NUM_ENVS:
            raise ValueError(f"reset: expected an environment from 0 to 2**32 - 1; found {env!r}")
        task = self._task(instruction, goal)
        self._histories[env] = History(task)
        # A chunk's noise depends on this count, so an episode's actions can be repeated.
        self._counts[env] = 0

    def instruct(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Gives an environment another task and keeps its history; the arguments are `reset`'s.

        Raises:
          ValueError: The task does not fit, or the environment was not reset.
        """
        history = self._history(env)
        history.task = self._task(instruction, goal)

    def forget(self, env: int) -> None:
        """Drops an environment that has ended, with its images."""
        self._histories.pop(env, None)
        self._counts.pop(env, None)

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds a step to histories without predicting.

        Raises:
          ValueError: An observation does not fit, or an environment was not reset.
        """
        self._push(observations)

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Adds a step to histories and predicts what follows it: float32 (h a) by environment.

        Args:
          observations: Observations of the environments to act in. More than the batch size of the
            export are split into several batches.

        Raises:
          ValueError: Observations are missing or do not fit, which lists all of them and changes no
            history; an environment was not reset; or actions are not finite, which clears the
            histories of their environments.
        """
        before = self._push(observations)
        envs, size = list(observations), self.settings.batch_size
        chunks: dict[int, np.ndarray] = {}
        try:
            for begin in range(0, len(envs), size):
                with _value_errors():
                    chunks |= self._infer(envs[begin : begin + size])
            unusable = [env for env, chunk in chunks.items() if not np.isfinite(chunk).all()]
            if unusable:
                # Cleared, as a value that is not finite would stay in the window.
                before |= dict.fromkeys(unusable, ())
                raise ValueError(
                    f"actions of environments {unusable}: expected finite values; found NaN or "
                    "infinity. Check the units of what is observed against the dataset's."
                )
        except Exception:
            for env, steps in before.items():
                self._histories[env].steps = steps
            raise
        # Only after success: a failed prediction may be repeated with the same noise.
        for env in envs:
            self._counts[env] += 1
        return chunks

    def restore_gripper(self, actions: np.ndarray) -> np.ndarray:
        """Returns actions with the dataset's own gripper commands; float32 (..., a), a new array.

        Args:
          actions: Actions of `infer`, whose grippers are 1 = open and 0 = close.

        Raises:
          ValueError: The actions lack a gripper.
        """
        with _value_errors():
            return restore_gripper(actions, self.conventions)

    def gripper_commands(self) -> GripperCommands:
        """Returns what turns executed actions into commands by the gripper rules of the run.

        Each environment and episode needs its own.
        """
        has = self.settings
        return GripperCommands(has.conventions, has.action_dims, has.gripper_rules)

    def _push(self, observations: Mapping[int, Observation]) -> dict[int, Steps]:
        """Adds a step to the histories of all, or of none; returns the steps that they had."""
        with _value_errors():
            check_environments(observations)
            # All are checked before any history is changed.
            histories = {env: self._history(env) for env in observations}
            rows = check_observations(observations, self.expected, resize=self._resize)
        before = {env: history.steps for env, history in histories.items()}
        for env, history in histories.items():
            history.push(rows[env], self.window_size)
        return before

    def _infer(self, envs: list[int]) -> dict[int, np.ndarray]:
        """Predicts for at most one batch of environments."""
        # Padded with the last environment; those rows are dropped below.
        filled = [*envs, *[envs[-1]] * (self.settings.batch_size - len(envs))]
        histories = [self._histories[env] for env in filled]
        names = tuple(self.expected)
        read = read_histories(histories, self.settings.before, self.settings.read, names)
        traced = self._chain.trace(read)
        batch = traced[-1] | self._text_arrays(filled)
        inputs: dict[str, Any] = {
            "batch": {key: batch[key] for key in self.settings.leaves},
            "key": self._key,
            "envs": np.array(filled, np.uint32),
            "counts": np.array([self._counts[env] for env in filled], np.uint32),
        }
        if self._rows:
            inputs["embeddings"] = self._texts["embeddings"][self._text_rows(filled)]
        chunks = self._program(inputs)
        # A rotation that is not finite has no inverse.
        if np.isfinite(chunks).all():
            chunks = self._chain.invert(chunks, traced)
        # `strict=False` drops the rows of padding.
        return dict(zip(envs, chunks, strict=False))

    def _text_arrays(self, envs: Sequence[int]) -> FlatBatch:
        """Returns the token ids of the environments' instructions, and their masks."""
        if not self._rows:
            return {}
        rows, key = self._text_rows(envs), "task/language_instruction/"
        return {
            "task/pad_mask_dict/language_instruction": self._texts["has_text"][rows],
            f"{key}input_ids": self._texts["input_ids"][rows],
            f"{key}attention_mask": self._texts["attention_mask"][rows],
        }

    def _text_rows(self, envs: Sequence[int]) -> list[int]:
        return [self._rows[self._histories[env].task.text] for env in envs]

    def _history(self, env: int) -> History:
        if env not in self._histories:
            raise ValueError(
                f"environment {env}: expected a task; found none. Call reset(env, instruction) at "
                "the start of its episode."
            )
        return self._histories[env]

    def _task(self, text: str, goal: Mapping[str, np.ndarray] | None) -> Task:
        """Checks a task; returns it with goal images of the stored size."""
        cameras = self.settings.goal_cameras if goal else ()
        expected = {name: self.expected[name] for name in cameras}
        with _value_errors():
            task = Task(text, goal or {})
            check_kind(task, self.settings.conditioning)
            checked = check_observations({0: task.goal}, expected, resize=self._resize)[0]
        if self._rows and text not in self._rows:
            known = ", ".join(map(repr, self.instructions))
            raise ValueError(
                f"instruction: expected one that was exported: {known}; found {text!r}"
            )
        return Task(text, checked)


def main() -> None:
    """Prints what the policy of the file reads and predicts, and how long a prediction takes."""
    began = time.perf_counter()
    try:
        policy = ExportedPolicy()
        ready = time.perf_counter() - began
        sys.stdout.write(f"{policy}\n")
        times = _times_ms(policy)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    median = np.median(times[1:])
    sys.stdout.write(
        f"time: {ready:.1f} s to load, {times[0]:.0f} ms the first prediction, {median:.0f} ms the "
        "others\n"
    )


def _times_ms(policy: ExportedPolicy) -> list[float]:
    """Predicts a few chunks from an example; returns how long each took."""
    observation = policy.example_observation()
    text = next(iter(policy.instructions), "")
    needs_goal = policy.settings.conditioning == "image_conditioned"
    policy.reset(
        0,
        "" if needs_goal else text,
        {name: observation[name] for name in policy.settings.goal_cameras if needs_goal},
    )
    times = []
    for _ in range(_NUM_TIMED):
        began = time.perf_counter()
        policy.infer({0: observation})
        times.append(1e3 * (time.perf_counter() - began))
    return times


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Turns errors of the library inside the block into those that Python programs expect."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None
