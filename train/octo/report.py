"""What becomes of every tensor when a model takes the weights of a checkpoint, in words."""

import collections
import dataclasses
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pipeline.errors import UserError

Status = Literal["loaded", "resized", "new", "unused", "mismatched shape"]
"""`resized`: fitted to the model's shape; `new`: only the model has it; `unused`: only the
checkpoint; `mismatched shape`: the model's fresh values are kept."""

Shape = tuple[int, ...]

_INPUT = re.compile(
    r"octo_transformer/(?:obs_(\w+?)_(?:projection|pos_embedding)"
    r"|(?:observation|task)_tokenizers_(\w+?)/)"
)
"""Parameters that belong to one input; its name is in one of the groups."""


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """What became of one tensor."""

    path: str
    """Its place in the parameters, joined by `/`."""
    status: Status
    """What became of it."""
    target_shape: Shape | None
    """Its shape in the model; None: the model has no such tensor."""
    checkpoint_shape: Shape | None
    """Its shape in the checkpoint; None: the checkpoint has no such tensor."""
    how: str = ""
    """What was done to a resized one."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of the model and of the checkpoint."""

    rows: tuple[LoadRow, ...]
    """A row a tensor, sorted by path."""

    def summary(self) -> str:
        """Returns one line: tensors and numbers by status."""
        tensors = collections.Counter[str](row.status for row in self.rows)
        numbers = collections.Counter[str]()
        for row in self.rows:
            numbers[row.status] += math.prod(row.target_shape or row.checkpoint_shape or ())
        return ", ".join(
            f"{count} {status} ({numbers[status]:,} numbers)" for status, count in tensors.items()
        )


def check_expected(rows: Sequence[LoadRow], expected: Sequence[str]) -> None:
    """Raises `UserError` that names all tensors which neither have a place nor are expected.

    Args:
      rows: Of the account.
      expected: Globs over paths of tensors that may be new, unused or of another shape.
    """
    surprises = [
        row
        for row in rows
        if row.status not in ("loaded", "resized")
        and not any(fnmatch.fnmatchcase(row.path, glob) for glob in expected)
    ]
    if surprises:
        target = {row.path: row.target_shape for row in rows}
        checkpoint = {row.path: row.checkpoint_shape for row in rows}
        lines = [
            f"\n  {row.path}: {row.status}, {row.target_shape or 'none'} here, "
            f"{row.checkpoint_shape or 'none'} in the checkpoint{_cause(row, target, checkpoint)}"
            for row in surprises
        ]
        raise UserError(
            where="pretrained weights",
            expected=f"every tensor loaded, but for {list(expected) or 'none'}",
            found=f"{len(surprises)} others:{''.join(lines)}\n",
            remedy="Fit the model config to the checkpoint, or list what may differ as globs in "
            "pretrained_differs; position embeddings can be fitted, see pretrained_resized",
        )


def _cause(
    row: LoadRow, target: Mapping[str, Shape | None], checkpoint: Mapping[str, Shape | None]
) -> str:
    """Says in words what a mismatch most likely comes from; nothing where it is plain."""
    ours, theirs = row.target_shape, row.checkpoint_shape
    if row.how:
        return f" ({row.how})"
    if ours is None or theirs is None:
        return _missing_cause(row, target, checkpoint)
    if len(ours) != len(theirs):
        return ""
    if row.path.endswith("_pos_embedding"):
        return _position_cause(ours, theirs)
    head = "heads_action/diffusion_model/reverse_network/"
    here, there = (shapes.get(f"{head}Dense_1/bias") for shapes in (target, checkpoint))
    if row.path.startswith(f"{head}Dense_") and here and there and here != there:
        inputs = f": {ours[0]} against {theirs[0]} inputs" if ours[0] != theirs[0] else ""
        return (
            f" (action_horizon or action_dim differs: their product is {here[0]} here, "
            f"the checkpoint has {there[0]}{inputs})"
        )
    return ""


_HEAD_PARTS = {
    "heads_action/diffusion_model/": "a diffusion head",
    "heads_action/mean_proj/": "an L1 or MSE head",
    "heads_action/map_head/": "a head with attention pooling",
}


def _missing_cause(
    row: LoadRow, target: Mapping[str, Shape | None], checkpoint: Mapping[str, Shape | None]
) -> str:
    """Says which input or head only one of the two has."""
    here, there = ("the model", "the checkpoint")
    has, lacks = (here, there) if row.status == "new" else (there, here)
    for part, name in _HEAD_PARTS.items():
        if row.path.startswith(part):
            return f" ({has} has {name}, {lacks} has none)"
    match = _INPUT.match(row.path)
    if match is None:
        return ""
    name = match[1] or match[2]
    other = checkpoint if row.status == "new" else target
    stands_there = any(shape is not None and f"_{name}" in path for path, shape in other.items())
    return "" if stands_there else f" ({has} has the input {name!r}, {lacks} has not)"


def _position_cause(ours: Shape, theirs: Shape) -> str:
    """Says which axis of `(1 steps tokens d)` or `(1 tokens d)` differs."""
    if ours[-1] != theirs[-1]:
        return f" (embedding_dim is {ours[-1]}, the checkpoint has {theirs[-1]})"
    if ours[-2] != theirs[-2]:
        return (
            f" ({ours[-2]} tokens, the checkpoint has {theirs[-2]}: "
            "another image_size, num_tokens or max_length)"
        )
    return f" (max_horizon is {ours[1]}, the checkpoint has {theirs[1]})"
