"""The functions that training and rollout call: parameters, loss and actions."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pipeline.errors import UserError
from pipeline.loading.text import Encode, tokenize
from train.octo.model import OctoModule
from train.octo.octo_config import OctoConfig
from train.octo.protocols import HeadConfig, Noise
from train.octo.tokenizer_inputs import Inputs

Params = dict[str, Any]
"""Nested dicts of arrays, as in linen's `params` collection."""

Key = PRNGKeyArray | jax.Array
"""A jax key, typed or raw."""

_NUM_KEPT = 256
"""Number of instruction embeddings that a policy caches: 13 MB for octo-small."""


def input_spec(config: OctoConfig, batch_size: int, window_size: int) -> dict[str, Any]:
    """Returns shape and dtype of the smallest batch that the model can be trained on.

    The pipeline's batch has more keys (masks of single inputs, proprio) that the model does not
    need.

    Args:
      config: The config of the model.
      batch_size: Number of samples per batch.
      window_size: Window size in steps.

    Returns:
      `jax.ShapeDtypeStruct`s, nested as in the batch.
    """
    steps = (batch_size, window_size)
    observation = {"timestep_pad_mask": jax.ShapeDtypeStruct(steps, bool)}
    # Also what only the alignment loss reads.
    for part in (*config.observations, *config.aligned):
        for key, leaf in part.inputs.items():
            observation[key] = jax.ShapeDtypeStruct((*steps, *leaf.shape), leaf.dtype)
    task = {}
    if config.language is not None:
        ids = jax.ShapeDtypeStruct((batch_size, config.language.max_length), jnp.int32)
        task["language_instruction"] = {"input_ids": ids, "attention_mask": ids}
    chunk = (*steps, config.head.action_horizon, config.head.action_dim)
    return {
        "observation": observation,
        "task": task,
        "action": jax.ShapeDtypeStruct(chunk, jnp.float32),
        "action_pad_mask": jax.ShapeDtypeStruct(chunk, bool),
    }


def init_params(config: OctoConfig, key: Key) -> Params:
    """Returns fresh parameters; works under `jax.jit` and `jax.eval_shape`.

    No data is read, and no shape depends on the batch or the window. Under `jax.jit` the forward
    pass that linen needs to find the parameters is compiled away.

    Args:
      config: The config of the model.
      key: A jax key.
    """
    params_key, noise_key = jax.random.split(key)
    # The smallest batch: no parameter's shape depends on these sizes.
    spec = input_spec(config, batch_size=1, window_size=1)
    batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec)
    noise = config.head.draw_training_noise(noise_key, (1, 1))
    # By `losses`, which reaches every module; acting would leave out the alignments.
    variables = OctoModule(config).init(params_key, batch, noise, method="losses")
    return cast(Params, variables["params"])


def loss_fn(module: OctoModule, params: Params, batch: Inputs, noise: Noise) -> Float[Array, ""]:
    """Returns the head's loss of a batch.

    Args:
      module: The model.
      params: The parameters of the model.
      batch: A batch with observation, task, actions and their mask; see `OctoModule.loss`.
      noise: The random numbers from `head.draw_training_noise`.
    """
    loss = module.apply({"params": params}, batch, noise, method="loss")
    return cast(jax.Array, loss)


def losses_fn(
    module: OctoModule, params: Params, batch: Inputs, noise: Noise
) -> dict[str, Float[Array, ""]]:
    """Returns the total `loss`, which training minimises, and its parts; see `OctoModule.losses`.

    Args:
      module: The model.
      params: The parameters of the model.
      batch: A batch with observation, task, actions and their mask; see `OctoModule.loss`.
      noise: The random numbers from `head.draw_training_noise`.
    """
    losses = module.apply({"params": params}, batch, noise, method="losses")
    return cast(dict[str, jax.Array], losses)


def sample_axes(draw: Callable[[Key, tuple[int, int]], Noise], window: int) -> Any:
    """Returns the axis of the samples in each array of a head's noise, in the noise's own layout.

    It is the axis whose length follows the number of samples:

        1 sample       2 samples      axis
        (20 1 2 28)    (20 2 2 28)    1

    Args:
      draw: `draw_training_noise` or `draw_sampling_noise` of the head's config.
      window: Window size in steps.

    Raises:
      UserError: An array has no such axis, or several.
    """
    key = jax.random.key(0)
    # Shapes only: nothing is drawn.
    one, two = (jax.eval_shape(lambda n=n: draw(key, (n, window))) for n in (1, 2))

    def axis_of(first: jax.ShapeDtypeStruct, second: jax.ShapeDtypeStruct) -> int:
        pairs = enumerate(zip(first.shape, second.shape, strict=False))
        axes = [axis for axis, lengths in pairs if lengths == (1, 2)]
        if len(axes) != 1 or len(first.shape) != len(second.shape):
            raise UserError(
                where="model.head, " + getattr(draw, "__name__", "noise"),
                expected="arrays with one axis of samples each",
                found=f"the shape {first.shape} for 1 sample and {second.shape} for 2",
                remedy="Draw each array for the given number of samples",
            )
        return axes[0]

    return jax.tree.map(axis_of, one, two)


def draw_by_sample(head: HeadConfig, keys: jax.Array, window: int) -> Noise:
    """Draws each sample's noise for `sample` from its own key, as in a batch of one with that key.

    Args:
      head: The config of the head.
      keys: Typed jax keys, one per sample.
      window: Window size in steps.
    """
    axes = sample_axes(head.draw_sampling_noise, window)
    drawn = jax.vmap(lambda key: head.draw_sampling_noise(key, (1, window)))(keys)

    def join(leaf: jax.Array, axis: int) -> jax.Array:
        # vmap's axis is in front, so the axis of one sample is one further; it makes room.
        return jnp.moveaxis(jnp.squeeze(leaf, axis + 1), 0, axis)

    return jax.tree.map(join, drawn, axes)


def encode_texts(
    module: OctoModule,
    params: Params,
    input_ids: Int[Array, "texts n"],
    attention_mask: Int[Array, "texts n"],
) -> Float[Array, "texts n d"]:
    """Encodes texts for `task/language_embedding`.

    Args:
      module: The model.
      params: The parameters of the model.
      input_ids: Token ids of the texts.
      attention_mask: 1 for a token, 0 for padding.
    """
    instruction = {"input_ids": input_ids, "attention_mask": attention_mask}
    return cast(jax.Array, module.apply({"params": params}, instruction, method="encode_language"))


# The module is hashable and decides the program; policies of one config share it.
_encode_texts = jax.jit(encode_texts, static_argnames="module")


class InstructionEncoder:
    """Encodes instructions one at a time, for a policy at rollout.

    It caches the embeddings of the last 256 instructions by their token ids, so neither many nor
    long texts fill the memory.

    Args:
      config: The config of the model, which has a language tokenizer.
      params: The parameters of the model.
      encode: Returns the token ids of a text.
    """

    def __init__(self, config: OctoConfig, params: Params, encode: Encode) -> None:
        if config.language is None:
            raise ValueError("the model reads no language")
        self._module = OctoModule(config)
        self._max_length = config.language.max_length
        self._encode = encode
        self._params = params  # an argument: a closure would compile them into the program
        # By bytes, since arrays are not hashable. Of ids, not texts: longer texts with the same ids
        # share.
        self._embedding = functools.lru_cache(_NUM_KEPT)(self._embed)

    def __call__(self, text: str) -> Float[Array, "n d"]:
        """Returns the embedding of a text: one row of `task/language_embedding`.

        The text is truncated to the model's length, as in training.
        """
        table = tokenize([text], self._encode, self._max_length)
        return self._embedding(table.input_ids.tobytes(), table.attention_mask.tobytes())

    def _embed(self, ids: bytes, mask: bytes) -> jax.Array:
        # [None]: a batch of one text.
        as_arrays = (np.frombuffer(part, np.int32)[None] for part in (ids, mask))
        return _encode_texts(self._module, self._params, *as_arrays)[0]


def sample_actions(
    module: OctoModule, params: Params, observation: Inputs, task: Inputs, key: Key
) -> Float[Array, "b h a"]:
    """Samples normalised actions for the last step of the window.

    Args:
      module: The model.
      params: The parameters of the model.
      observation: The observation of a batch; see `OctoModule.__call__`.
      task: The task of a batch; see `OctoModule.__call__`.
      key: A jax key for the noise.
    """
    shape = observation["timestep_pad_mask"].shape
    noise = module.config.head.draw_sampling_noise(key, shape)
    actions = module.apply({"params": params}, observation, task, noise, method="sample_actions")
    return cast(jax.Array, actions)
