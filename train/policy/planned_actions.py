"""Actions that are still planned while the next chunk is predicted, and how they guide it."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.conventions import ROTATION_DIMS
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.loading.batch import BatchSpec, FlatBatch
from pipeline.loading.transforms.rotation_layout import rotation_names
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation, RelativePose
from pipeline.loading.transforms.transform_chain import ACTION_MASK
from train.octo.heads.guidance import Guide, soft_mask
from train.policy.policy_spec import PolicySpec

_CONTINUOUS = ("rot6d", "rot6d_rows", "matrix")
"""Representations in which similar rotations have similar numbers."""
_POSITION_SIZE = 3


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedActions:
    """What is left of a chunk whose execution continues while the next chunk is predicted.

    chunk      a0 a1 a2 a3 a4 a5 a6 a7     predicted from the observation of step 0
    step 4:                ^ observed      PlannedActions(chunk[4:], delay=2)
    next       b0 b1 b2 b3 b4 b5 b6 b7     b0 = a4, b1 = a5; takes effect at b2, step 6
    """

    actions: np.ndarray
    """Actions in the dataset's units, as `Policy.infer` returns them, float (n a); the first is for
    the step that is observed now."""
    delay: int
    """Number of steps until the new chunk takes effect, at most n: the first `delay` actions are
    committed, the others guide the chunk."""


Previous = Mapping[int, PlannedActions | None]
"""Planned actions by environment; None: there are none yet."""


def check_guided(where: str, *, is_guided: bool) -> None:
    """Checks that a policy can continue planned actions.

    Args:
      where: What is called, for the error.
      is_guided: The policy's `PolicyConfig.real_time_chunking`.

    Raises:
      UserError: It cannot.
    """
    if not is_guided:
        raise UserError(
            where=where,
            expected="a policy that was made for real-time chunking",
            found="PolicyConfig.real_time_chunking False",
            remedy="Make it with PolicyConfig(real_time_chunking=True).",
        )


def check_blended(spec: PolicySpec) -> None:
    """Checks that blended chunks are poses between the predicted and the planned ones.

    Args:
      spec: What the policy reads and predicts.

    Raises:
      UserError: The head's chunks are blended with planned actions, and the model learns target
        poses with rotations whose numbers have no useful mean.
    """
    jumping = _target_rotations(spec) - set(_CONTINUOUS)
    if jumping and not hasattr(spec.model.head.make_head(), "sample_guided"):
        raise UserError(
            where="real-time chunking",
            expected="target poses whose rotations the model learns as "
            f"{' or '.join(_CONTINUOUS)}, or relative to the current one, as its head's chunks are "
            "blended with planned actions",
            found=f"{', '.join(sorted(jumping))}: two that are nearly equal can have a mean that "
            "is turned by 180 degrees",
            remedy="Do without: evaluate with --execution naive_async or synchronous, serve "
            "without --delay and --real_time_chunking, in Python leave out real_time_chunking. Or "
            'train with ConvertActionRotation(..., target="rot6d") or RelativePose.',
        )


def _target_rotations(spec: PolicySpec) -> set[str]:
    """Returns the representations in which a model learns the rotations of target poses.

    Those that `RelativePose` makes are left out: they are small, far from the angles at which
    numbers jump.
    """
    conventions = spec.conventions
    if not conventions.target_poses or conventions.rotation == "none":
        return set()
    poses = [pose.dims for pose in conventions.rotations if pose.feature == ACTION]
    # Otherwise the rotation is behind the position.
    poses = poses or [range(_POSITION_SIZE, _POSITION_SIZE + ROTATION_DIMS[conventions.rotation])]
    dims = spec.before[ACTION].dims
    names = {name for pose in poses for name in dims[pose.start : pose.stop]}
    for transform in spec.data.transforms:
        match transform:
            case RelativePose():
                names -= {*transform.rotation}
            # Where the representation stays the same, so do the names.
            case ConvertActionRotation(source=source, target=target) if (
                source != target and names.issuperset(transform.rotation)
            ):
                names -= {*transform.rotation}
                names |= {*rotation_names(transform.prefix, target)}
            case _:
                pass
    learned = spec.chain.spec[ACTION]
    return {learned.rotations[name] for name in names & learned.rotations.keys() - learned.unused}


def check_planned(
    previous: Mapping[int, Any], envs: Collection[int], shape: tuple[int, int]
) -> None:
    """Checks the planned actions of all environments.

    Args:
      previous: The planned actions.
      envs: Environments that are observed.
      shape: Number of actions in a chunk, and of dimensions of an action.

    Raises:
      UserError: They do not fit, or are for an environment that is not observed; it lists all.
    """
    horizon, dims = shape
    problems = []
    for env, plan in previous.items():
        if env not in envs:
            problems.append(f"environment {env}: not observed")
        elif plan is not None:
            problems += [f"environment {env}: {problem}" for problem in _problems(plan, shape)]
    if problems:
        raise UserError(
            where="policy, previous",
            expected=f"1 to {horizon} planned actions of {dims} finite values for an environment "
            "that is observed, and a delay from 0 to their number",
            found="; ".join(problems),
            remedy="Give what is left of the last chunk at this step, and the steps until the next "
            "takes effect: PlannedActions(chunk[executed:], delay). A longer delay needs a longer "
            "chunk, or a prediction that starts earlier.",
        )


def _problems(plan: Any, shape: tuple[int, int]) -> Iterator[str]:
    if not isinstance(plan, PlannedActions):
        yield f"a {type(plan).__name__} instead of PlannedActions"
        return
    actions = plan.actions
    if not isinstance(actions, np.ndarray):
        yield f"actions as a {type(actions).__name__} instead of an array"
        return
    if actions.ndim != len(shape) or actions.shape[1] != shape[1] or actions.dtype.kind != "f":
        yield f"{actions.dtype}{list(actions.shape)}"
        return
    if not 1 <= len(actions) <= shape[0]:
        yield f"{len(actions)} actions"
    if not np.isfinite(actions).all():
        yield "values that are not finite"
    if not isinstance(plan.delay, int | np.integer) or not 0 <= plan.delay <= len(actions):
        yield f"a delay of {plan.delay} steps with {len(actions)} planned actions"


def planned_batch(plans: Sequence[PlannedActions], spec: BatchSpec) -> FlatBatch:
    """Returns planned actions as the loader reads actions, to be transformed like them.

    Every step of the window has the actions of its last one, and the last action is repeated to the
    length of a chunk: no values are made up, which may be none of a rotation.

    Args:
      plans: Planned actions of each environment.
      spec: Types of a batch before the transforms.
    """
    _, window, horizon, _ = spec[ACTION].shape
    # (b h): the step of the plan that each action of the chunk is taken from.
    taken = [np.minimum(np.arange(horizon), len(plan.actions) - 1) for plan in plans]
    chunks = np.stack([plan.actions[rows] for plan, rows in zip(plans, taken, strict=True)])
    actions = np.repeat(chunks[:, None].astype(np.float32), window, axis=1)
    return {ACTION: actions, ACTION_MASK: np.ones(actions.shape, bool)}


def guide_of(plans: Sequence[PlannedActions], batch: FlatBatch) -> Guide:
    """Returns the guide of a batch whose actions are `planned_batch`'s, after the transforms."""
    action, mask = batch[ACTION][:, -1], batch[ACTION_MASK][:, -1]
    weights = [soft_mask(action.shape[1], len(plan.actions), plan.delay) for plan in plans]
    # Dimensions that are masked or padded are not of the plan.
    return Guide(action, np.stack(weights)[..., None] * mask.astype(np.float32))


def with_committed(chunk: np.ndarray, plan: PlannedActions) -> np.ndarray:
    """Returns a chunk (h a) that begins with exactly the committed actions of a plan."""
    committed = plan.actions[: plan.delay].astype(np.float32)
    return np.concatenate([committed, chunk[plan.delay :]])
