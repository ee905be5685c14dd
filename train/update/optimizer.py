"""Makes the optimizer: learning rate schedule, clipped AdamW, and frozen parameters."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from pipeline.errors import UserError
from train.train_config import OptimizerConfig

Parameters = dict[str, jax.Array]
"""Arrays by path; the parts of a path are joined by `/`."""


def learning_rate(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the rate of each training step: a linear warm-up, then the config's `schedule`.

    Source: Octo's `create_lr_schedule`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        # optax counts `decay_steps` from step 0, so the warm-up is part of it.
        end = config.decay_steps or num_steps
        if end <= warmup:  # the run ends before its peak, such as a short trial of a config
            return optax.linear_schedule(0.0, peak, warmup)
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, end)
    rise = optax.linear_schedule(0.0, peak, warmup)

    def decay(step: jax.typing.ArrayLike) -> jax.Array:
        if config.schedule == "constant":
            return jnp.full_like(step, peak, jnp.float32)
        # `join_schedules` counts this step from the end of the warm-up.
        timescale = float(config.rsqrt_timescale)
        return peak / jnp.sqrt((jnp.asarray(step, jnp.float32) + timescale) / timescale)

    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns clipped AdamW for a rate of 1: the training step multiplies its updates by the rate.

    Source: Octo's `create_optimizer`: betas 0.9 and 0.999, the first moment in bfloat16, weight
      decay only on kernels.
    """
    # The norm of all trained gradients together.
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        # bfloat16 as in Octo; it saves a sixth of the memory of parameters and moments.
        optax.scale_by_adam(mu_dtype=jnp.bfloat16),
        # Decoupled, as in AdamW: the decay does not pass through Adam's moments.
        optax.add_decayed_weights(config.weight_decay, _kernels),
    )


def split_frozen(params: Any, frozen: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters into (trained, frozen), each by path; `join_frozen` is the inverse.

    Args:
      params: Nested parameters.
      frozen: Globs over parameter paths.
    """
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    held = {path: leaf for path, leaf in flat.items() if _is_frozen(path, frozen)}
    return {path: leaf for path, leaf in flat.items() if path not in held}, held


def join_frozen(trained: dict[str, Any], frozen: dict[str, Any]) -> Any:
    """Joins trained and frozen parameters to one nested tree."""
    return traverse_util.unflatten_dict(trained | frozen, sep="/")


def check_frozen(paths: Iterable[str], frozen: Sequence[str]) -> None:
    """Raises an error if a glob matches no parameter, or all parameters are frozen.

    Args:
      paths: The paths of all parameters.
      frozen: Globs over these paths.

    Raises:
      UserError: A glob matches nothing, or nothing is left to train.
    """
    paths = list(paths)
    chosen = set(frozen) - set(OptimizerConfig().frozen)  # a model may have no language encoder
    idle = [glob for glob in chosen if not any(fnmatch.fnmatchcase(path, glob) for path in paths)]
    if idle:
        raise UserError(
            where="config.optimizer.frozen",
            expected="globs that match parameters of the model, such as octo_transformer/*",
            found=f"{', '.join(idle)}, which match none",
            remedy="Fix or remove them; the paths are those of load_report.json, joined by /.",
        )
    if all(_is_frozen(path, frozen) for path in paths):
        raise UserError(
            where="config.optimizer.frozen",
            expected="at least one trained parameter",
            found=f"all {len(paths)} parameters frozen by {', '.join(frozen)}",
            remedy="Freeze less.",
        )


def _is_frozen(path: str, frozen: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in frozen)


def _kernels(params: Parameters) -> dict[str, bool]:
    """Returns True for each parameter with weight decay: the kernels."""
    # By the last name: biases, norms and position embeddings do not decay.
    return {path: path.endswith("kernel") for path in params}
