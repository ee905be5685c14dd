"""The optimizer: AdamW where it belongs, and nothing for frozen parameters."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from train.config import OptimizerConfig

_TRAINED, _FROZEN = "trained", "frozen"


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """From 0 up to the peak, then down a cosine to 0 at `decay_steps` or else `num_steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.decay_steps or num_steps
    )


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipped AdamW for the trained parameters; frozen ones take no memory and no decay.

    Source: Octo's `create_optimizer` with its finetuning values: betas 0.9 and 0.999, the first
    moment in bfloat16.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, num_steps),
            weight_decay=config.weight_decay,
            mask=_is_kernel,
            mu_dtype=jnp.bfloat16,
        ),
    )
    return optax.multi_transform(
        {_TRAINED: adamw, _FROZEN: optax.set_to_zero()},
        lambda params: _labels(params, config.frozen),
    )


def split_frozen(params: Any, frozen: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trained, frozen) parameters by path; `join_frozen` is the inverse.

    Args:
      params: Nested.
      frozen: Globs over paths.
    """
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    held = {path: leaf for path, leaf in flat.items() if _is_frozen(path, frozen)}
    return {path: leaf for path, leaf in flat.items() if path not in held}, held


def join_frozen(trained: dict[str, Any], frozen: dict[str, Any]) -> Any:
    """The nested parameters of both."""
    return traverse_util.unflatten_dict(trained | frozen, sep="/")


def _is_frozen(path: str, frozen: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in frozen)


def _labels(params: Any, frozen: Sequence[str]) -> Any:
    """`trained` or `frozen` for each parameter."""

    def label(path: jax.tree_util.KeyPath, _: jax.Array) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return _FROZEN if _is_frozen(name, frozen) else _TRAINED

    return jax.tree_util.tree_map_with_path(label, params)


def _is_kernel(params: Any) -> Any:
    """True for the parameters that decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )
