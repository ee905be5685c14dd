"""The named dimensions of an action, and the state that actions are relative to."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.config_checks import Problem
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.transforms.transform import dims_at

ACTION_MASK = "action_pad_mask"


def where_of(transform: Any, field: str) -> str:
    """Names a transform and its field, for an error."""
    return f"{type(transform).__name__}.{field}"


def check_names(config: Any, field: str, count: int | None = None) -> Iterator[Problem]:
    """Yields the problem of names that are not different, or of another number of them.

    Args:
      config: The config that has the field.
      field: Its names. A field with the default `()` may be empty.
      count: How many; None: at least one.
    """
    names = getattr(config, field)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    if not names and defaults[field] == ():
        return
    wanted = "at least one name" if count is None else f"{count} names"
    if not names or (count is not None and len(names) != count):
        found = f"{len(names)}: {', '.join(names)}" if names else "none"
        yield Problem(field, wanted, found, "Name dimensions as `octograin inspect` shows them.")
    elif len(set(names)) < len(names):
        yield Problem(field, "different names", ", ".join(names), "Name each dimension once.")


def action_dims(transform: Any, field: str, spec: BatchSpec) -> list[int]:
    """Places of a field's names in the action, none of which may be a gripper or unused."""
    names, leaf = getattr(transform, field), spec[ACTION]
    dims = dims_at(spec, ACTION, names, where_of(transform, field))
    raw = [name for name in names if name in leaf.raw]
    if raw:
        raise UserError(
            where=where_of(transform, field),
            expected="dimensions in the dataset's units",
            found=f"{', '.join(raw)}, a gripper from 0 to 1 or unused",
            remedy="Leave it out; mask or pad dimensions after this transform.",
        )
    return dims


def with_dims(transform: Any, spec: BatchSpec, leaf: LeafSpec, names: Sequence[str]) -> BatchSpec:
    """The types of the action and its mask with other dimensions.

    Raises:
      UserError: Two have one name.
    """
    check_different(transform, names, "the action")
    dims = tuple(names)
    after = {ACTION: dataclasses.replace(leaf, shape=(*leaf.shape[:-1], len(dims)), dims=dims)}
    if mask := spec.get(ACTION_MASK):
        after[ACTION_MASK] = dataclasses.replace(mask, shape=after[ACTION].shape, dims=dims)
    return after


def check_different(transform: Any, names: Sequence[str], what: str) -> None:
    """Checks that the names of dimensions after a transform are different."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            where=type(transform).__name__,
            expected=f"new names of dimensions that {what} does not have",
            found=", ".join(twice),
            remedy="Give the transform a `prefix`, such as left_."
            if hasattr(transform, "prefix")
            else "Pad the action once, with the size of the model.",
        )


def check_window(transform: Any, spec: BatchSpec) -> None:
    """Checks that the state has a step for each step of the window."""
    key = f"observation/{transform.state}"
    state, action = spec[key].shape, spec[ACTION].shape
    if len(state) != len("bwd") or state[1] < action[1]:
        raise UserError(
            where=where_of(transform, "state"),
            expected=f"a vector with {action[1]} steps, one for each step of the window",
            found=f"{key} {spec[key]}",
            remedy="Leave the state out of data.current_only and data.windows.",
        )


def state_of(transform: Any, batch: FlatBatch, spec: BatchSpec) -> np.ndarray:
    """The state at each step of the action's window, float64 (b w d).

    Raises:
      UserError: A sample has none.
    """
    key, window = f"observation/{transform.state}", spec[ACTION].shape[1]
    is_read = batch.get(f"observation/pad_mask_dict/{transform.state}")
    if is_read is not None and not is_read[:, -window:].all():
        raise UserError(
            where=f"{type(transform).__name__}, {key}",
            expected="the state of every sample, which actions are relative to",
            found=f"none in {np.count_nonzero(~is_read[:, -window:].all(axis=1))} of "
            f"{len(is_read)} samples",
            remedy="Leave out datasets that lack it, and put a dropout of it after this transform.",
        )
    return batch[key][:, -window:].astype(np.float64)
