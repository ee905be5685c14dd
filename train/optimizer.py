"""The optimizer: schedule, clipped AdamW where it belongs, and nothing for frozen parameters."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from pipeline.errors import UserError
from train.config import OptimizerConfig

Parameters = dict[str, jax.Array]
"""Arrays by path, joined by `/`."""


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The rate of each step: from 0 up to the peak, then as the config's `schedule` says.

    Source: Octo's `create_lr_schedule`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        end = config.decay_steps or num_steps
        if end <= warmup:  # a run that ends before its peak, such as one that tries a config out
            return optax.linear_schedule(0.0, peak, warmup)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, end)
    rise = optax.linear_schedule(0.0, peak, warmup)

    def decay(step: jax.typing.ArrayLike) -> jax.Array:
        if config.schedule == "constant":
            return jnp.full_like(step, peak, jnp.float32)
        timescale = float(config.rsqrt_timescale)
        return peak / jnp.sqrt((jnp.asarray(step, jnp.float32) + timescale) / timescale)

    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipped AdamW over trained parameters by path, for a rate of 1: the step scales its updates.

    Source: Octo's `create_optimizer`: betas 0.9 and 0.999, the first moment in bfloat16, decay of
    kernels alone.
    """
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.scale_by_adam(mu_dtype=jnp.bfloat16),
        optax.add_decayed_weights(config.weight_decay, _kernels),
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


def check_frozen(paths: Iterable[str], frozen: Sequence[str]) -> None:
    """Raises where a glob names no parameter, or all of them are frozen.

    Args:
      paths: Of all parameters.
      frozen: Globs over them.

    Raises:
      UserError: Either is so.
    """
    paths = list(paths)
    chosen = set(frozen) - set(OptimizerConfig().frozen)  # a model without language has no encoder
    idle = [glob for glob in chosen if not any(fnmatch.fnmatchcase(path, glob) for path in paths)]
    if idle:
        raise UserError(
            where="config.optimizer.frozen",
            expected="globs that name parameters of the model, such as octo_transformer/*",
            found=f"{', '.join(idle)}, which name none",
            remedy="Fix or remove them; the paths are those of load_report.json, joined by /.",
        )
    if all(_is_frozen(path, frozen) for path in paths):
        raise UserError(
            where="config.optimizer.frozen",
            expected="something that is trained",
            found=f"all {len(paths)} parameters frozen by {', '.join(frozen)}",
            remedy="Freeze less.",
        )


def _is_frozen(path: str, frozen: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in frozen)


def _kernels(params: Parameters) -> dict[str, bool]:
    """True for the parameters that decay."""
    return {path: path.endswith("kernel") for path in params}
