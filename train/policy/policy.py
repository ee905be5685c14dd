"""A policy: histories of environments in, chunks of actions out, from a checkpoint alone."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from pipeline.batch import LeafSpec, nest
from pipeline.conventions import Conventions
from pipeline.errors import UserError
from train.checkpoints import Checkpoint, is_run, read_checkpoint
from train.octo.config import DiffusionConfig, OctoConfig
from train.octo.diffusion import SamplingNoise, draw_sampling_noise
from train.octo.model import OctoModule
from train.octo.policy import InstructionEncoder
from train.policy.inputs import PolicyInputs, Task, TokenEncoder
from train.policy.latency import Latency, Stopwatch
from train.policy.observations import Observation
from train.policy.spec import PolicySpec
from train.step import to_model_size

_NUM_ENVS = 2**32
_BLANK_SIDE = 224
"""Pixels of an image whose size is not known; any would do, as the encoder resizes."""


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """How a policy runs."""

    batch_size: int = 1
    """Environments that are computed at a time: fewer are padded, more are computed one batch after
    the other."""
    seed: int = 0
    """Of the noise of a diffusion head."""
    resize: bool = False
    """Resize images of another size than the stored to it, as training resizes to the model's;
    else they are an error."""

    def __post_init__(self) -> None:
        """Checks the range."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")


class Policy:
    """Acts in several environments at once; each has a number, a task and a history of its own.

        policy.reset(env, "open the drawer")            at the start of every episode
        chunks = policy.infer({env: observation})       {env: float32 (h a)}

    An **action** has the dataset's units, with 1 = open and 0 = close for the gripper, as
    `standardize_gripper` makes it and the simulator takes it;
    `restore_gripper(actions, policy.conventions)` gives what the dataset's action column holds.

    The noise of a chunk is a function of the seed, the environment's number and how often it was
    asked since its reset: whoever else is in the batch changes nothing. Not to be shared between
    threads.

    Args:
      checkpoint: Of a run.
      dataset: Path or name of the dataset whose statistics and conventions are used; None: of any,
        where they are the same for all.
      config: How it runs.
      encoder: Computes the tokens, where the model reads some; else not used.

    Raises:
      UserError: No such dataset, none is named and they differ, or the encoder is missing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: str | None = None,
        config: PolicyConfig = PolicyConfig(),
        encoder: TokenEncoder | None = None,
    ) -> None:
        self.spec = PolicySpec.of(checkpoint, dataset)
        self.config = config
        self.step = checkpoint.step
        vocabulary = sentencepiece.SentencePieceProcessor()
        vocabulary.LoadFromSerializedProto(checkpoint.vocabulary)
        encode = vocabulary.EncodeAsIds
        self._inputs = PolicyInputs(
            self.spec, encode, encoder, batch_size=config.batch_size, resize=config.resize
        )
        self._params = jax.device_put(checkpoint.params)
        self._base_key = jax.random.key(config.seed)
        self._asked: dict[int, int] = {}
        self._stopwatch = Stopwatch()
        model = self.spec.model
        self._language = (
            None if model.language is None else InstructionEncoder(model, self._params, encode)
        )
        self._predict = self._compile()

    @classmethod
    def from_run(
        cls,
        directory: str | os.PathLike[str],
        step: int | None = None,
        dataset: str | None = None,
        config: PolicyConfig = PolicyConfig(),
        encoder: TokenEncoder | None = None,
    ) -> "Policy":
        """The policy of a checkpoint; only the directory of its step is read.

        Args:
          directory: Of the run.
          step: Which checkpoint; None: the last.
          dataset: As of the class.
          config: As of the class.
          encoder: As of the class.

        Raises:
          UserError: No run, no such checkpoint, or as the class.
          DataError: It is corrupt.
        """
        return cls(read_run(directory, step), dataset, config, encoder)

    @property
    def conventions(self) -> Conventions:
        """What the numbers of observations and, once the gripper is restored, of actions mean."""
        return self.spec.conventions

    @property
    def expected(self) -> dict[str, LeafSpec | None]:
        """What every observation has to hold, by name; None: an image of any size."""
        return self._inputs.expected

    @property
    def window_size(self) -> int:
        """Steps that the model reads, the current one included."""
        return self.spec.data.window_size

    @property
    def action_horizon(self) -> int:
        """Actions of a chunk."""
        return self.spec.model.head.action_horizon

    @property
    def latency(self) -> Latency:
        """Of the calls of `infer` so far, for all of their environments together."""
        return self._stopwatch.latency

    def reset(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Starts an episode: the environment's history and count of chunks begin from scratch.

        Args:
          env: Its number, from 0; the number of the trial makes its noise independent of where and
            when it runs.
          instruction: Its task.
          goal: Its task instead: images of every camera, for a policy that was trained on goals.

        Raises:
          UserError: A kind of task that the model was not trained on.
        """
        if not 0 <= env < _NUM_ENVS:
            raise UserError(
                where="policy, reset",
                expected="the number of an environment, from 0 to 2**32 - 1",
                found=str(env),
                remedy="Count them, or the trials.",
            )
        self._inputs.reset(env, Task(instruction, goal or {}))
        self._asked[env] = 0

    def instruct(
        self, env: int, instruction: str = "", goal: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Gives an environment another task; its history stays. Arguments as of `reset`.

        Raises:
          UserError: As `reset`, or the environment was not reset.
        """
        self._inputs.instruct(env, Task(instruction, goal or {}))

    def forget(self, env: int) -> None:
        """Drops an environment that has ended, and its images."""
        self._inputs.forget(env)
        self._asked.pop(env, None)

    def observe(self, observations: Mapping[int, Observation]) -> None:
        """Adds a step to histories without predicting.

        With a window of several steps, the steps just before one that is inferred have to be seen
        too: as in training, they are consecutive.

        Raises:
          UserError: As `infer`.
        """
        self._inputs.push(observations, latest=False)

    def infer(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """Adds a step to histories and predicts what follows it: float32 (h a) by environment.

        Args:
          observations: Of the environments that are asked.

        Raises:
          UserError: Naming every observation that is missing or does not fit; no history has
            changed then. An environment that was not reset. Or actions that are not finite; the
            histories of their environments are empty then, so that nothing that led to them stays.
        """
        with self._stopwatch.measured():
            envs = list(observations)
            self._inputs.push(observations)
            chunks: dict[int, np.ndarray] = {}
            for begin in range(0, len(envs), self.config.batch_size):
                chunks |= self._infer(envs[begin : begin + self.config.batch_size])
            unusable = [env for env, chunk in chunks.items() if not np.isfinite(chunk).all()]
            if unusable:
                raise self._not_finite(chunks, unusable)
        for env in envs:
            self._asked[env] += 1
        return chunks

    def warm_up(self) -> None:
        """Predicts once for blank observations, so that the first answer compiles nothing.

        Making a policy compiles the model and the language encoder; this also compiles the token
        encoder. An image whose size is not known, because the model reads its tokens alone, is
        taken at the encoder's size. No environment changes, and `latency` does not count it.
        """
        env = next(env for env in range(_NUM_ENVS) if env not in self._asked)
        blank = {name: self._blank(leaf) for name, leaf in self.expected.items()}
        needs_goal = self.spec.data.conditioning == "image_conditioned"
        goal = {name: blank[name] for name in self.spec.cameras if needs_goal and name in blank}
        self.reset(env, goal=goal)
        try:
            self._inputs.push({env: blank})
            self._infer([env])
        finally:
            self.forget(env)

    def noise_key(self, env: int, count: int) -> jax.Array:
        """The key of the noise of a chunk: the `count`-th since the environment's reset, from 0."""
        return _noise_key(self._base_key, jnp.uint32(env), jnp.uint32(count))

    def batch(self, envs: list[int]) -> dict[str, Any]:
        """What the model reads of environments now, on the host, a row each; nested."""
        return self._inputs.batch(envs)

    def _infer(self, envs: list[int]) -> dict[int, np.ndarray]:
        """Of at most a batch of environments."""
        filled = [*envs, *[envs[-1]] * (self.config.batch_size - len(envs))]
        batch = self._inputs.batch(filled)
        embeddings = None
        if self._language is not None:
            texts = [self._inputs.task(env).text for env in filled]
            embeddings = jnp.stack([self._language(text) for text in texts])
        counts = np.array([self._asked[env] for env in filled], np.uint32)
        predicted = self._predict(
            self._params, batch, embeddings, self._base_key, np.array(filled, np.uint32), counts
        )
        chunks = self.spec.unnormalize_actions(np.asarray(predicted))
        return dict(zip(envs, chunks, strict=False))

    def _blank(self, leaf: LeafSpec | None) -> np.ndarray:
        """An observation of zeros."""
        if leaf is None:
            return np.zeros((_BLANK_SIDE, _BLANK_SIDE, 3), np.uint8)
        return np.zeros(leaf.shape, leaf.dtype)

    def _not_finite(self, chunks: Mapping[int, np.ndarray], envs: list[int]) -> UserError:
        """The error of actions that are not finite, with the likeliest cause; empties histories."""
        found = sum(int(np.count_nonzero(~np.isfinite(chunks[env]))) for env in envs)
        of_all = sum(chunks[env].size for env in envs)
        steps = [step for env in envs for step in self._inputs.take_steps(env)]
        cause = ""
        seen = [name for name in self.spec.normalized if name in self.spec.observed]
        if seen:
            sizes = {n: max(float(np.abs(step[n]).max()) for step in steps) for n in seen}
            name = max(seen, key=lambda name: sizes[name])
            cause = f", with a normalised {name} of up to {sizes[name]:.3g}"
        return UserError(
            where="actions" + (f" of environments {envs}" if len(chunks) > 1 else ""),
            expected="finite values",
            found=f"NaN or infinity in {found} of {of_all}{cause}",
            remedy="Check the units of what is observed against the dataset's; if they are right, "
            "the model has diverged: take an earlier checkpoint.",
        )

    def _compile(self) -> Any:
        """The model for exactly one batch, compiled."""
        structs = {"observation": {}, "task": {}} | nest(
            {
                key: jax.ShapeDtypeStruct((self.config.batch_size, *leaf.shape), leaf.dtype)
                for key, leaf in self.spec.leaves.items()
            }
        )
        embeddings = None
        if self._language is not None:
            one = self._language("")
            embeddings = jax.ShapeDtypeStruct((self.config.batch_size, *one.shape), one.dtype)
        numbers = jax.ShapeDtypeStruct((self.config.batch_size,), jnp.uint32)

        lowered = _predict.lower(
            self._params,
            structs,
            embeddings,
            self._base_key,
            numbers,
            numbers,
            model=self.spec.model,
            window_size=self.window_size,
        )
        return lowered.compile()


def read_run(directory: str | os.PathLike[str], step: int | None = None) -> Checkpoint:
    """A checkpoint of a run, as `read_checkpoint`.

    Raises:
      UserError: The directory holds no run, or the run no such checkpoint.
      DataError: It is corrupt.
    """
    path = pathlib.Path(directory)
    try:
        is_there = is_run(path)
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
            remedy="Name the save_dir of a run.",
        )
    return read_checkpoint(path, step)


@functools.partial(jax.jit, static_argnames=("model", "window_size"))
def _predict(  # noqa: PLR0913  (a program's inputs)
    params: Any,
    batch: dict[str, Any],
    embeddings: jax.Array | None,
    base_key: jax.Array,
    envs: jax.Array,
    counts: jax.Array,
    *,
    model: OctoConfig,
    window_size: int,
) -> jax.Array:
    """Normalised chunks (b h a). Policies of one model share its program, whatever their weights.

    Args:
      params: Of the model.
      batch: What the model reads, a row per environment.
      embeddings: Of the instructions, (b n d); None where the model reads no language.
      base_key: Of the noise.
      envs: Numbers of the environments, (b).
      counts: How often each was asked since its reset, (b).
      model: The model.
      window_size: Steps that it reads.
    """
    keys = jax.vmap(_noise_key, in_axes=(None, 0, 0))(base_key, envs, counts)
    inputs = to_model_size(batch, model)
    if embeddings is not None:
        inputs["task"]["language_embedding"] = embeddings
    noise = _noise(model, keys, window_size)
    arguments = (inputs["observation"], inputs["task"], noise)
    chunks = OctoModule(model).apply({"params": params}, *arguments, method="sample_actions")
    return jnp.asarray(chunks)


def _noise_key(base_key: jax.Array, env: jax.Array, count: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(base_key, env), count)


def _noise(model: OctoConfig, keys: jax.Array, window_size: int) -> SamplingNoise | None:
    """Each row's random numbers from its own key: those of a batch of one with that key."""
    head = model.head
    if not isinstance(head, DiffusionConfig):
        return None
    drawn = jax.vmap(lambda key: draw_sampling_noise(head, key, (1, window_size)))(keys)
    steps = jnp.moveaxis(drawn.steps[:, :, 0], 0, 1)
    return SamplingNoise(initial=drawn.initial[:, 0], steps=steps)
