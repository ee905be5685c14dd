"""Compiles the model of a policy and samples normalised chunks with it, in batches of one size."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pipeline.data.schema import ACTION
from train.octo.functional import InstructionEncoder, Params, draw_by_sample
from train.octo.heads.guidance import Guide
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig, with_unused_dims
from train.policy.latency import StageClock
from train.policy.policy_inputs import nest_inputs
from train.policy.policy_spec import PolicySpec
from train.update.train_step import to_model_size


class ChunkSampler:
    """A compiled model; nothing is compiled after it is made.

    A guided chunk has a program of its own: the other is the same with and without it.

    Args:
      spec: What the model reads.
      params: Parameters of the model.
      batch_size: Number of environments in every batch.
      seed: Seed of the noise.
      clock: Measures the language encoder and the model.
      guided: Whether chunks may be guided, which compiles a second program.
    """

    def __init__(
        self,
        spec: PolicySpec,
        params: Params,
        *,
        batch_size: int,
        seed: int,
        clock: StageClock,
        guided: bool,
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._batch_size = batch_size
        # Moved to the device once, not with every call.
        self.params = jax.device_put(params)
        self._base_key = jax.random.key(seed)
        model = spec.model
        self._language = (
            None if model.language is None else InstructionEncoder(model, self.params, spec.encode)
        )
        self._predict = self._compile(None)
        self._predict_guided: Any = self._compile(self._no_guide) if guided else None

    def __call__(
        self,
        arrays: dict[str, Any],
        texts: Sequence[str],
        envs: Sequence[int],
        counts: Sequence[int],
        guide: Guide | None = None,
    ) -> np.ndarray:
        """Returns normalised chunks, float32 (b h a).

        Args:
          arrays: Nested arrays that the model reads, one row per environment.
          texts: Instruction of each environment.
          envs: Number of each environment.
          counts: Number of chunks predicted in each since its reset.
          guide: What the chunks are guided to, if `guided`; None: nothing.
        """
        embeddings = None
        if self._language is not None:
            with self._clock.measured("instruction_ms"):
                # Encoded once per text: `InstructionEncoder` keeps its results.
                embeddings = jnp.stack([self._language(text) for text in texts])
                # Otherwise its time would be the model's, which waits for it.
                embeddings.block_until_ready()
        numbers = (np.array(envs, np.uint32), np.array(counts, np.uint32))
        predict = self._predict if guide is None else self._predict_guided
        with self._clock.measured("model_ms"):
            chunks = predict(self.params, arrays, embeddings, self._base_key, *numbers, guide)
            return np.asarray(chunks)

    def noise_key(self, env: int, count: int) -> jax.Array:
        """Returns the noise key of the `count`-th chunk since the environment's reset, from 0."""
        return _noise_key(self._base_key, jnp.uint32(env), jnp.uint32(count))

    @property
    def _no_guide(self) -> Guide:
        """Returns a guide that leaves everything free."""
        head = self._spec.model.head
        zeros = np.zeros((self._batch_size, head.action_horizon, head.action_dim), np.float32)
        return Guide(zeros, zeros)

    def _compile(self, guide: Guide | None) -> Any:
        """Compiles the model for exactly one batch size, with or without a guide."""
        spec, size = self._spec, self._batch_size
        structs = nest_inputs(
            {
                key: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype)
                for key, leaf in spec.leaves.items()
            }
        )
        embeddings = None
        if self._language is not None:
            # Its shape is known only to the encoder.
            one = self._language("")
            embeddings = jax.ShapeDtypeStruct((size, *one.shape), one.dtype)
        numbers = jax.ShapeDtypeStruct((size,), jnp.uint32)

        # Compiled for fixed shapes: a call with another shape is an error, not a recompilation.
        lowered = sample_chunks.lower(
            self.params,
            structs,
            embeddings,
            self._base_key,
            numbers,
            numbers,
            guide,
            model=with_unused_dims(spec.model, spec.chain.spec[ACTION]),
            window_size=spec.data.window_size,
        )
        return lowered.compile()


# Static, because they decide the program; the weights are an argument.
@functools.partial(jax.jit, static_argnames=("model", "window_size"))
def sample_chunks(  # noqa: PLR0913  (a program's inputs)
    params: Any,
    batch: dict[str, Any],
    embeddings: jax.Array | None,
    base_key: jax.Array,
    envs: jax.Array,
    counts: jax.Array,
    guide: Guide | None,
    *,
    model: OctoConfig,
    window_size: int,
) -> jax.Array:
    """Samples normalised chunks (b h a); policies share this program, whatever their weights.

    Args:
      params: Parameters of the model.
      batch: The batch that the model reads, one row per environment.
      embeddings: Embedded instructions, (b n d); None if the model reads no language.
      base_key: Key of the noise.
      envs: Numbers of the environments, (b).
      counts: Number of chunks predicted in each since its reset, (b).
      guide: What the chunks are guided to; None: nothing.
      model: Config of the model.
      window_size: Number of steps that the model reads.
    """
    # A key of its own for each row.
    keys = jax.vmap(_noise_key, in_axes=(None, 0, 0))(base_key, envs, counts)
    inputs = to_model_size(batch, model)
    if embeddings is not None:
        inputs["task"]["language_embedding"] = embeddings
    noise = draw_by_sample(model.head, keys, window_size)
    arguments = (inputs["observation"], inputs["task"], noise)
    method = "sample_actions"
    if guide is not None:
        arguments, method = (*arguments, guide), "sample_guided"
    chunks = OctoModule(model).apply({"params": params}, *arguments, method=method)
    return jnp.asarray(chunks)


def _noise_key(base_key: jax.Array, env: jax.Array, count: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(base_key, env), count)
