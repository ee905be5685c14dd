"""Reads the inputs of tokenizers from a batch: checked, and of the steps that they are read for."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from pipeline.errors import UserError
from train.octo.protocols import TokenizerConfig
from train.octo.token_groups import TokenGroup

_FLOATS = ("float16", "bfloat16", "float32")
"""Dtypes of an input that is declared as a float."""

Inputs = Mapping[str, Any]
"""The `observation` or `task` of a batch: arrays, or nested mappings of arrays, by key."""


def require(inputs: Inputs, key: str, *, part: str, reader: str) -> Any:
    """Returns `inputs[key]`.

    Args:
      inputs: The `observation` or `task` of a batch.
      key: The key to read.
      part: Name of `inputs` in the batch, for the error message.
      reader: What reads the key, for the error message.

    Raises:
      UserError: `inputs` lacks the key.
    """
    if key not in inputs:
        raise UserError(
            where=f"batch, {part}",
            expected=f"{key!r}, which the {reader} reads",
            found=f"only {', '.join(sorted(inputs))}",
            remedy=f"Add {key!r} to the observations of the run, or configure a model without it",
        )
    return inputs[key]


def check_array(
    array: jax.Array, axes: str, shape: tuple[int, ...], dtypes: Sequence[str], where: str
) -> None:
    """Checks an input's dtype, its number of axes and the sizes of the last axes.

    Args:
      array: The input.
      axes: Names of the leading axes, one letter each: `b` batch, `w` window.
      shape: Sizes of the last axes, from the config.
      dtypes: Names of the accepted dtypes.
      where: Key path in the batch, for the error message.

    Raises:
      UserError: The array does not match.
    """
    # The axes before the given shape.
    leading = array.ndim - len(shape)
    if leading != len(axes) or array.shape[leading:] != shape or array.dtype.name not in dtypes:
        whole = f"({' '.join([*axes, *map(str, shape)])})"
        raise UserError(
            where=f"batch, {where}",
            expected=f"{' or '.join(dtypes)} {whole}, as in the model config",
            found=f"{array.dtype}{list(array.shape)}",
            remedy="Change the model config to the size of the data, or the data to the config's",
        )


def observation_mask(observation: Inputs, key: str, num_tokens: int) -> Bool[Array, "b w n"]:
    """Returns True where a token is real: its step is not padding and its input is not missing.

    Args:
      observation: The observation of a batch, with `timestep_pad_mask`, bool `(b w)`, and
        optionally `pad_mask_dict`; an input without an entry there is never missing.
      key: The input's key.
      num_tokens: Number of tokens per step.
    """
    real = observation["timestep_pad_mask"]
    present = observation.get("pad_mask_dict", {}).get(key)
    if present is not None:
        # A missing input is masked in every step of the window.
        real = real & present
    # All tokens of one input are real or none is.
    return jnp.broadcast_to(real[:, :, None], (*real.shape, num_tokens))


def read_steps(observation: Inputs, config: TokenizerConfig) -> dict[str, Any]:
    """Returns the part of an observation that a tokenizer reads: its last `v` steps.

    `v` is the longest window of the tokenizer's inputs, which a run may read for fewer steps than
    the model's window (`DataConfig.windows`). Shorter inputs get masked zeros in front, so that all
    arrays have the same steps:

        window 3, a (b 2 ...), c (b 1 ...)     a: steps 1 2    c: 0 and step 2, masked at 1

    Args:
      observation: The observation of a batch, with `timestep_pad_mask`, bool `(b w)`.
      config: The config of the tokenizer.

    Returns:
      The arrays of `config.inputs` `(b v ...)`, `timestep_pad_mask`, bool `(b v)`, and
      `pad_mask_dict`, bool `(b v)` by key.

    Raises:
      UserError: An input is missing, is unlike its type, or has more steps than the window.
    """
    arrays = {key: _read(observation, key, config) for key in config.inputs}
    real = observation["timestep_pad_mask"]
    window = real.shape[1]
    steps = max((array.shape[1] for array in arrays.values()), default=window)
    read: dict[str, Any] = {"timestep_pad_mask": real[:, window - steps :], "pad_mask_dict": {}}
    given = observation.get("pad_mask_dict", {})
    for key, array in arrays.items():
        num_unread = steps - array.shape[1]
        read[key] = array
        if key in given:
            read["pad_mask_dict"][key] = given[key][:, window - steps :]
        if num_unread:
            read[key] = jnp.pad(array, ((0, 0), (num_unread, 0), *[(0, 0)] * (array.ndim - 2)))
            # Whether or not the batch has a mask that says so.
            is_read = jnp.broadcast_to(jnp.arange(steps) >= num_unread, (len(array), steps))
            read["pad_mask_dict"][key] = read["pad_mask_dict"].get(key, is_read) & is_read
    return read


def _read(observation: Inputs, key: str, config: TokenizerConfig) -> jax.Array:
    array = require(observation, key, part="observation", reader=f"tokenizer {config.name!r}")
    leaf = config.inputs[key]
    dtypes = _FLOATS if leaf.dtype in _FLOATS else [leaf.dtype]
    check_array(array, "bw", leaf.shape, dtypes, f"observation/{key}")
    window = observation["timestep_pad_mask"].shape[1]
    if array.shape[1] > window:
        raise UserError(
            where=f"batch, observation/{key}",
            expected=f"at most the {window} steps of the window",
            found=f"{array.shape[1]} steps",
            remedy="Give it as many steps as observation/timestep_pad_mask, or its last ones",
        )
    return array


def check_group(group: TokenGroup, read: Inputs, config: TokenizerConfig) -> None:
    """Checks that a tokenizer's tokens are those that its config announces.

    Args:
      group: What the tokenizer returned.
      read: What it was given; see `read_steps`.
      config: The config of the tokenizer.

    Raises:
      UserError: They are of another number, or of other steps, or their mask does not fit.
    """
    steps, count = read["timestep_pad_mask"].shape, config.tokens_per_step
    # Geometry that joins a camera has no group, whose tokens could be counted.
    fits = group.tokens.shape[:-1] == (*steps, count or group.tokens.shape[-2])
    if not fits or group.mask.shape != group.tokens.shape[:-1] or group.mask.dtype != bool:
        raise UserError(
            where=f"model, tokenizer {config.name!r}",
            expected=f"tokens ({' '.join(map(str, (*steps, count)))} d), as its tokens_per_step "
            "says, and a bool mask of their first three axes",
            found=f"tokens {group.tokens.shape} and a mask {group.mask.dtype}{group.mask.shape}",
            remedy="Change the tokenizer, or tokens_per_step of its config",
        )
