"""Reports how every tensor is used when a model loads the weights of a checkpoint."""

import collections
import dataclasses
import fnmatch
import math
import posixpath
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.errors import UserError
from train.octo.released.config_differences import Differences, find_cause

Status = Literal["loaded", "resized", "new", "unused", "mismatched shape"]
"""How a tensor was used. `resized`: fitted to the model's shape; `new`: only in the model;
`unused`: only in the checkpoint; `mismatched shape`: the model's fresh values are kept."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadRow:
    """How one tensor of the model or the checkpoint was used."""

    path: str
    """Path in the parameters, joined by `/`."""
    status: Status
    """How the tensor was used."""
    target_shape: Shape | None
    """Shape in the model; None: the model has no such tensor."""
    checkpoint_shape: Shape | None
    """Shape in the checkpoint; None: the checkpoint has no such tensor."""
    how: str = ""
    """How a resized tensor was made, or why it cannot be resized."""


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """How every tensor of the model and of the checkpoint was used."""

    rows: tuple[LoadRow, ...]
    """One row per tensor, sorted by path."""

    def summary(self) -> str:
        """Returns one line: the number of tensors and parameters by status."""
        tensors = collections.Counter[str](row.status for row in self.rows)
        numbers = collections.Counter[str]()
        for row in self.rows:
            # A tensor that is not in the model counts with its own shape.
            numbers[row.status] += math.prod(row.target_shape or row.checkpoint_shape or ())
        return ", ".join(
            f"{count} {status} ({numbers[status]:,} parameters)"
            for status, count in tensors.items()
        )


def check_expected(
    rows: Sequence[LoadRow], expected: Sequence[str], differences: Differences
) -> None:
    """Raises a `UserError` that lists all tensors which were not loaded and are not expected.

    Tensors of one module with the same cause share one line.

    Args:
      rows: One row per tensor.
      expected: Globs over paths of tensors that may be new, unused or of another shape.
      differences: Settings in which the model and the checkpoint differ.
    """
    surprises = [
        row
        for row in rows
        if row.status not in ("loaded", "resized")
        and not any(fnmatch.fnmatchcase(row.path, glob) for glob in expected)
    ]
    if surprises:
        lines = "".join(f"\n  {line}" for line in _group_lines(surprises, differences))
        raise UserError(
            where="pretrained weights",
            expected=f"every tensor loaded, except {list(expected) or 'none'}",
            found=f"{len(surprises)} others:{lines}\n",
            remedy="Change the model config to match the checkpoint, or allow tensors to differ by "
            "globs in pretrained_differs; position embeddings can be resized by those in "
            "pretrained_resized",
        )


def _group_lines(rows: Sequence[LoadRow], differences: Differences) -> Iterator[str]:
    groups: dict[tuple[str, ...], list[LoadRow]] = {}
    for row in rows:
        axes = None
        if row.target_shape is not None and row.checkpoint_shape is not None:
            axes = set(zip(row.target_shape, row.checkpoint_shape, strict=False))
        cause = row.how or find_cause(row.path, axes, differences)
        module = "/".join(row.path.split("/")[:2])
        # One line per module and cause: a missing layer has dozens of tensors.
        groups.setdefault((module, row.status, cause), []).append(row)
    for (_, status, cause), group in groups.items():
        first, reason = group[0], f" ({cause})" if cause else ""
        shapes = (
            f"{first.target_shape or 'none'} here, "
            f"{first.checkpoint_shape or 'none'} in the checkpoint{reason}"
        )
        if len(group) == 1:
            yield f"{first.path}: {status}, {shapes}"
        else:
            prefix = posixpath.commonpath([row.path for row in group])
            example = first.path.removeprefix(f"{prefix}/")
            yield f"{prefix}/*: {len(group)} {status}, such as {example}: {shapes}"
