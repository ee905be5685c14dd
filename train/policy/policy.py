"""Runs a policy from a checkpoint alone: it keeps environments' histories and predicts chunks."""

import dataclasses
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import jax
import numpy as np

from pipeline.arguments import check_path, named_arguments
from pipeline.config_checks import Problem, check, check_positive
from pipeline.data.conventions import Conventions
from pipeline.data.rotations import Representation, convert_rotation
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from train.checkpoints.checkpoint_store import Checkpoint, is_run, read_checkpoint
from train.checkpoints.fetched_run import find_run
from train.policy.chunk_sampler import ChunkSampler
from train.policy.latency import Latency, StageClock, Stopwatch, Timing
from train.policy.observations import TASKS, Observation, Task, describe_one
from train.policy.planned_actions import (
    PlannedActions,
    Previous,
    check_blended,
    check_guided,
    check_planned,
    with_committed,
)
from train.policy.policy_inputs import PolicyInputs
from train.policy.policy_spec import PolicySpec
from train.policy.rollout_tokens import TokenEncoder, encoder_of
from train.update.train_state import count_parameters

_log = logging.getLogger(__name__)

NUM_SEEDS = 2**32
"""Seeds are from 0 to one less: the keys of larger ones are those of smaller ones."""
# The number is folded into a key as uint32.
_NUM_ENVS = 2**32
_SHOWN_RUNS = 4
_SHOWN_OBSERVATIONS = 8
"""Lines of a description."""
# Neither black, which marks missing images, nor white.
_GREY = 127
_WARM_UP_TEXTS = ("up", "the", "and", "it")
"""Instructions of the predictions before the first call. On a CPU the first of them took seven
times as long as later ones, and the others still shorten the first call."""
_BLANK_SIDE = 224
"""Side in pixels of a blank image whose size is not known; the encoder resizes any size."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Settings for running a policy."""

    batch_size: int = 1
    """Environments per batch: fewer are padded, more are split into several batches."""
    seed: int = 0
    """Seed of a diffusion head's noise, from 0 to 2**32 - 1."""
    resize: bool = False
    """Resizes images of other sizes to the stored size, as training resizes to the model's;
    otherwise other sizes are errors."""
    real_time_chunking: bool = False
    """Compiles a second program, with which `infer` continues planned actions (`previous`)."""

    def __post_init__(self) -> None:
        """Raises an error if a field is out of range."""
        check(self)

    def problems(self) -> Iterator[Problem]:
        """Yields each problem of the fields."""
        yield from check_positive(self, "batch_size")
        if not 0 <= self.seed < NUM_SEEDS:
            remedy = "Give any integer in this range."
            yield Problem("seed", "0 to 2**32 - 1", self.seed, remedy)


class Policy:
    """Acts in several environments at once; each has its own number, task and history.

        policy = Policy.from_run("runs/demo")
        policy.reset(env, "open the drawer")            # at the start of every episode
        chunks = policy.infer({env: observation})       # {env: float32 (h a)}

    `policy.example_observation()` returns an observation of the right keys, types and shapes, and
    `print(policy)` lists them.

    An **action** has the dataset's units, except for the gripper, which is 1 = open and 0 = closed:
    `standardize_gripper` makes it so, and the simulator expects it. `restore_gripper(actions,
    policy.conventions)` converts actions to the dataset's commands.

    A chunk's noise depends only on the seed, the environment's number and the count of predictions
    since its reset, not on other environments in the batch. Calls from several threads wait for
    each other; those of one environment have to come in order.

    Args:
      checkpoint: Checkpoint of a run.
      dataset: Path or name of the dataset whose statistics and conventions are used. None: any, if
        they are the same for all.
      config: Settings for running the policy.
      encoder: Computes the tokens, if the model reads any; otherwise unused.

    Raises:
      UserError: There is no such dataset, none is given and they differ, the encoder is missing, or
        real-time chunking would blend rotations whose numbers have no useful mean.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: str | None = None,
        config: PolicyConfig = PolicyConfig(),
        encoder: TokenEncoder | None = None,
    ) -> None:
        self.spec = PolicySpec.of(checkpoint, dataset)
        if config.real_time_chunking:
            check_blended(self.spec)
        self.config = config
        self.step, self.address = checkpoint.step, checkpoint.address
        self._clock = StageClock()
        # Of one thread, as methods call others.
        self._lock = threading.RLock()
        self._inputs = PolicyInputs(
            self.spec,
            encoder,
            batch_size=config.batch_size,
            resize=config.resize,
            clock=self._clock,
        )
        # Compiled here, so that no prediction does it.
        self._sampler = ChunkSampler(
            self.spec,
            checkpoint.params,
            batch_size=config.batch_size,
            seed=config.seed,
            clock=self._clock,
            guided=config.real_time_chunking,
        )
        # Chunks predicted since each environment's reset.
        self._asked: dict[int, int] = {}
        self._stopwatch = Stopwatch()

    @classmethod
    @named_arguments("PolicyConfig has the batch_size and the seed.")
    def from_run(
        cls,
        directory: str | os.PathLike[str],
        step: int | None = None,
        dataset: str | None = None,
        config: PolicyConfig = PolicyConfig(),
        encoder: TokenEncoder | None = None,
        *,
        weights: str | None = None,
    ) -> "Policy":
        """Loads the policy of a checkpoint; reads only the checkpoint's directory.

        A policy on a hub is fetched into the cache, from which it later works without a network;
        `policy.address` then has the commit. Nothing that is fetched is executed.

        Args:
          directory: The run directory, or `hf://owner/name[@revision]` for a policy on the hub.
          step: Training step of the checkpoint; None: the last one.
          dataset: Path or name of the dataset whose statistics and conventions are used; None: any.
          config: Settings for running the policy.
          encoder: Computes the tokens, if the model reads any; None: the encoder that made those of
            the dataset.
          weights: Where that encoder's weights are now; None: where they were for the dataset.

        Raises:
          UserError: There is no run or no such checkpoint, or the policy cannot be made.
          DataError: The checkpoint is corrupt, or cannot be fetched.
        """
        check_path(directory, "Policy.from_run, directory", "a run directory")
        checkpoint = read_run(directory, step)
        if encoder is None:
            encoder = encoder_of(checkpoint, dataset, source=weights)
        return cls(checkpoint, dataset, config, encoder)

    def __str__(self) -> str:
        """What the policy reads and predicts, in at most 15 lines."""
        return self._describe()

    def __repr__(self) -> str:
        """The training step and the dataset, in one line."""
        return f"Policy(training step {self.step}, {self.spec.dataset!r})"

    def _describe(self) -> str:
        spec, steps = self.spec, self.window_size
        count = count_parameters(self._sampler.params)
        dims = f": {', '.join(spec.action_dims)}" if spec.action_dims else ""
        computed = f"tokens, computed from images: {', '.join(spec.tokens)}"
        lines = [f"  {name:16} {describe_one(leaf)}" for name, leaf in self.expected.items()]
        if len(lines) > _SHOWN_OBSERVATIONS:
            hidden = len(lines) - _SHOWN_OBSERVATIONS + 1
            lines[_SHOWN_OBSERVATIONS - 1 :] = [f"  and {hidden} more"]
        return "\n".join(
            [
                f"policy of training step {self.step}, {count:,} parameters",
                *([f"from: {self.address}"] if self.address else []),
                f"dataset: {spec.dataset}",
                f"task: {' or '.join(TASKS[spec.data.conditioning])}",
                "observation" + (f", of which the last {steps} are read:" if steps > 1 else ":"),
                *lines,
                *([computed] if spec.tokens else []),
                f"action: float32[{self.action_horizon},{spec.features[ACTION].shape[0]}]{dims}",
            ]
        )

    def example_observation(self) -> dict[str, np.ndarray]:
        """Returns an observation of the right keys, types and shapes, to call the policy with.

        Images, uint8 (y x 3), are grey, depth is one metre everywhere, and vectors are the mean of
        the training data, in the dataset's units. Other tensors are zeros, as are vectors whose
        dimensions a transform changes, but for rotations that the conventions state.
        """
        example = {}
        for name, leaf in self.expected.items():
            key = f"observation/{name}"
            statistics, read = self.spec.statistics.get(key), self.spec.chain.spec.get(key)
            example[name] = self._blank(leaf)
            # Statistics are of what the model reads.
            if statistics is not None and leaf and read and read.dims == leaf.dims:
                example[name][...] = statistics.mean.reshape(example[name].shape)
            else:
                example[name][...] = _example_value(leaf)
                _put_identities(example[name], leaf)
        return example

    @property
    def conventions(self) -> Conventions:
        """Returns what the values of observations and, with a restored gripper, of actions mean."""
        return self.spec.conventions

    @property
    def expected(self) -> dict[str, LeafSpec | None]:
        """Returns what every observation must contain, by name; None: an image of any size."""
        return self._inputs.expected

    @property
    def window_size(self) -> int:
        """Returns the number of steps that the model reads, including the current one."""
        return self.spec.data.window_size

    @property
    def action_horizon(self) -> int:
        """Returns the number of actions per chunk."""
        return self.spec.model.head.action_horizon

    @property
    def latency(self) -> Latency:
        """Returns the latency of all calls of `infer` so far, for all of their environments."""
        return self._stopwatch.latency

    @property
    def timing(self) -> Timing:
        """Returns where the time of this thread's last call of `infer` or `observe` went."""
        return self._clock.timing

    @property
    def is_busy(self) -> bool:
        """Returns whether another thread is in a call."""
        is_free = self._lock.acquire(blocking=False)
        if is_free:
            self._lock.release()
        return not is_free

    def reset(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Starts an episode: clears the environment's history and its count of chunks.

        Args:
          env: The environment's number, from 0. Using the trial's number makes its noise
            independent of when and where it runs.
          instruction: The task as an instruction.
          goal: The task as goal images of every camera, for a policy that was trained on goals.

        Raises:
          UserError: The model was not trained on this kind of task, or `env` is no number of an
            environment.
        """
        if not isinstance(env, int | np.integer) or not 0 <= env < _NUM_ENVS:
            raise UserError(
                where="policy, reset",
                expected="the number of an environment, from 0 to 2**32 - 1",
                found=repr(env),
                remedy="Number the environments, or the trials: policy.reset(0, instruction).",
            )
        with self._lock:
            self._inputs.reset(env, Task(instruction, goal or {}))
            # A chunk's noise depends on this count, so an episode's actions can be repeated.
            self._asked[env] = 0

    def instruct(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Gives an environment another task and keeps its history; the arguments are `reset`'s.

        Raises:
          UserError: The task does not fit, or the environment was not reset.
        """
        with self._lock:
            self._inputs.instruct(env, Task(instruction, goal or {}))

    def forget(self, env: int) -> None:
        """Drops an environment that has ended, with its images."""
        with self._lock:
            self._inputs.forget(env)
            self._asked.pop(env, None)

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds a step to histories without predicting.

        A window of several steps also needs the steps just before a prediction: as in training,
        they must be consecutive. Transforms read them at the next `infer`; after one that is
        refused for such a step, `reset` the environment.

        Raises:
          UserError: An observation does not fit, or an environment was not reset.
        """
        with self._lock:
            self._clock.restart()
            # Without tokens, unless the window reads those of earlier steps.
            self._inputs.push(observations, latest=False)

    def infer(
        self, observations: Mapping[int, Observation], previous: Previous | None = None
    ) -> dict[int, np.ndarray]:
        """Adds a step to histories and predicts what follows it: float32 (h a) by environment.

        With `previous`, a chunk continues actions that are executed while it is predicted: it
        begins with exactly the committed ones, and is guided to the others (real-time chunking).
        The noise is the same as without. An environment without planned actions is computed by the
        program that computes it without `previous`.

        Args:
          observations: Observations of the environments to act in.
          previous: Planned actions of environments; needs `PolicyConfig.real_time_chunking`.

        Raises:
          UserError: Observations or planned actions are missing or do not fit, which lists all of
            them and changes no history; an environment was not reset; or actions are not finite,
            which clears the histories of their environments.

        Source: Black, Galliker and Levine 2025, "Real-Time Execution of Action Chunking Flow
          Policies", for the diffusion head as `train/octo/heads/guidance.py` writes it. Chunks of
          other heads are blended with the plan by the same weights, normalised.
        """
        plans = self._plans(observations, previous or {})
        # Waiting for another thread is no part of the latency.
        with self._lock, self._stopwatch.measured():
            self._clock.restart()
            # One order for all batches.
            envs = list(observations)
            before = self._inputs.push(observations)
            try:
                chunks = self._predict(envs, plans)
                # After all batches, and inside the measurement: it waits for the device.
                unusable = [env for env, chunk in chunks.items() if not np.isfinite(chunk).all()]
                if unusable:
                    # Cleared, as a value that is not finite would stay in the window.
                    before |= dict.fromkeys(unusable, ())
                    raise self._not_finite(chunks, unusable)
            except Exception:
                self._inputs.rewind(before)
                raise
            # Only after success: a failed prediction may be repeated with the same noise.
            for env in envs:
                self._asked[env] += 1
        return {env: chunks[env] for env in envs}

    def warm_up(self) -> None:
        """Predicts from the example observation, so that no later call is slower than others.

        Constructing a policy compiles the model and the language encoder; this also compiles the
        token encoder, and runs all that a call with another instruction runs, which takes longer
        the first time. An image of unknown size, from which the model reads only tokens, gets the
        encoder's size. No environment changes, and `latency` ignores these predictions. With
        `real_time_chunking`, a guided chunk is predicted too. Where a transform of the run refuses
        the example, a warning says so, and the first call takes longer.
        """
        example = self.example_observation()
        needs_goal = self.spec.data.conditioning == "image_conditioned"
        # An image-conditioned policy has no task without a goal.
        goal = {name: example[name] for name in self.spec.cameras if needs_goal and name in example}
        with self._lock:
            # A number that no environment has.
            env = next(env for env in range(_NUM_ENVS) if env not in self._asked)
            try:
                for text in _WARM_UP_TEXTS:
                    # Another text each time, as the embedding of a known one is kept.
                    self.reset(env, "" if needs_goal else text, goal)
                    self._inputs.push({env: example})
                    if not self._try_example(env):
                        break
            finally:
                self.forget(env)

    def _try_example(self, env: int) -> bool:
        """Predicts in an environment that observed the example; False if a transform refuses it."""
        try:
            # Without the check of its actions, which a call makes.
            chunk = self._infer([env], {})[env]
            if self.config.real_time_chunking and np.isfinite(chunk).all():
                self._infer([env], {env: PlannedActions(chunk, delay=0)})
        except UserError as error:
            # A robot's observations may fit where the example's zeros do not.
            _log.warning("the first prediction will take longer than others: %s", error)
            return False
        return True

    def noise_key(self, env: int, count: int) -> jax.Array:
        """Returns the noise key of the `count`-th chunk since the environment's reset, from 0."""
        return self._sampler.noise_key(env, count)

    def batch(self, envs: list[int]) -> dict[str, Any]:
        """Returns the nested batch that the model reads now, on the host; rows are environments."""
        return self._inputs.batch(envs).arrays

    def _plans(
        self, observations: Mapping[int, Observation], previous: Previous
    ) -> dict[int, PlannedActions]:
        """Returns the planned actions of environments that have some, after checking them."""
        shape = (self.action_horizon, self.spec.features[ACTION].shape[0])
        check_planned(previous, observations, shape)
        plans = {env: plan for env, plan in previous.items() if plan is not None}
        if plans:
            check_guided("policy, previous", is_guided=self.config.real_time_chunking)
        return plans

    def _predict(
        self, envs: list[int], plans: Mapping[int, PlannedActions]
    ) -> dict[int, np.ndarray]:
        """Predicts for any number of environments."""
        chunks: dict[int, np.ndarray] = {}
        # One program is for environments with planned actions, the other for those without.
        for group in ([e for e in envs if e not in plans], [e for e in envs if e in plans]):
            # Batches of one size, for which the programs were compiled.
            for begin in range(0, len(group), self.config.batch_size):
                chunks |= self._infer(group[begin : begin + self.config.batch_size], plans)
        return chunks

    def _infer(self, envs: list[int], plans: Mapping[int, PlannedActions]) -> dict[int, np.ndarray]:
        """Predicts for at most one batch of environments; all have planned actions, or none."""
        # Padded with the last environment; those rows are dropped below.
        filled = [*envs, *[envs[-1]] * (self.config.batch_size - len(envs))]
        inputs = self._inputs.batch(filled, [plans[env] for env in filled if env in plans])
        texts = [self._inputs.task(env).text for env in filled]
        counts = [self._asked[env] for env in filled]
        chunks = self._sampler(inputs.arrays, texts, filled, counts, inputs.guide)
        # On the host, with the loader's own code; a rotation that is not finite has no inverse.
        if np.isfinite(chunks).all():
            chunks = inputs.restore(chunks)
        # `strict=False` drops the rows of padding.
        found = dict(zip(envs, chunks, strict=False))
        return {
            env: with_committed(chunk, plans[env]) if env in plans else chunk
            for env, chunk in found.items()
        }

    def _blank(self, leaf: LeafSpec | None) -> np.ndarray:
        """Returns an observation of zeros."""
        if leaf is None:
            return np.zeros((_BLANK_SIDE, _BLANK_SIDE, 3), np.uint8)
        return np.zeros(leaf.shape, leaf.dtype)

    def _not_finite(self, chunks: Mapping[int, np.ndarray], envs: list[int]) -> UserError:
        """Returns the error for actions of environments that are not finite, with its cause."""
        found = sum(int(np.count_nonzero(~np.isfinite(chunks[env]))) for env in envs)
        of_all = sum(chunks[env].size for env in envs)
        seen = self._inputs.batch(envs).arrays["observation"]
        sizes = {
            name: float(np.abs(seen[name]).max()) for name in self.spec.normalized if name in seen
        }
        name = max(sizes, key=lambda name: sizes[name], default="")
        cause = f", with a normalised {name} of up to {sizes[name]:.3g}" if name else ""
        return UserError(
            where="actions" + (f" of environments {envs}" if len(chunks) > 1 else ""),
            expected="finite values",
            found=f"NaN or infinity in {found} of {of_all}{cause}",
            remedy="Check the units of what is observed against the dataset's; if they are right, "
            "the model has diverged: use an earlier checkpoint.",
        )


def _example_value(leaf: LeafSpec | None) -> int:
    """Returns what an observation without statistics has everywhere, in an example."""
    if leaf is None or leaf.dtype == "uint8":
        return _GREY
    return int(leaf.is_depth)


def _put_identities(example: np.ndarray, leaf: LeafSpec | None) -> None:
    """Fills in no rotation where the conventions state one: zeros may be none of a representation.

    Args:
      example: The values (d) of an observation, which are modified.
      leaf: Its type.
    """
    rotations = {} if leaf is None else leaf.rotations
    for representation in get_args(Representation):
        places = [
            p for p, n in enumerate(leaf.dims if leaf else ()) if rotations.get(n) == representation
        ]
        if places:
            one = convert_rotation(
                np.array([0.0, 0.0, 0.0, 1.0]), "quaternion_xyzw", representation
            )
            example[places] = np.resize(one, len(places))


def read_run(run: str | os.PathLike[str], step: int | None = None) -> Checkpoint:
    """Reads a checkpoint of a run, after checking that there is one.

    Args:
      run: The run directory, or `hf://owner/name[@revision]`, which is fetched unless it is cached.
      step: Training step of the checkpoint; None: the last one.

    Raises:
      UserError: There is no run, or the run has no such checkpoint.
      DataError: The checkpoint is corrupt, or cannot be fetched.
    """
    found = find_run(run, step)
    _check_is_run(found.directory)
    checkpoint = read_checkpoint(found.directory, found.step)
    return dataclasses.replace(checkpoint, address=found.address)


def _check_is_run(path: pathlib.Path) -> None:
    """Raises an error if a directory holds no run."""
    near = ""
    try:
        is_there = is_run(path)
        near = "" if is_there else _runs_near(path)
        found = (
            "none in it" if path.is_dir() else "a file" if path.exists() else "no such directory"
        )
    except OSError as error:  # such as a name that is too long
        is_there, found = False, error.strerror or str(error)
    if not is_there:
        raise UserError(
            where=str(path),
            expected="the directory of a run, with checkpoints",
            found=found,
            remedy=near or "Give the save_dir of a run.",
        )


def _runs_near(path: pathlib.Path) -> str:
    """Says which run a directory is part of, or which runs are in it; empty if there are none."""
    if not path.is_dir():
        return ""
    # A run holds checkpoints/STEP.
    around = next((str(parent) for parent in path.parents[:2] if is_run(parent)), None)
    if around is not None:
        return f"Give the run itself: {around}."
    inside = sorted(str(folder) for folder in path.iterdir() if is_run(folder))
    return f"Runs in it: {', '.join(inside[:_SHOWN_RUNS])}." if inside else ""
