"""Reads `metrics.jsonl`: the metrics of every training step of a run."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from pipeline.checksums import from_json
from pipeline.errors import DataError
from pipeline.files import UNPARSABLE

METRICS_NAME = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`."""

    step: int
    """Training steps taken, including this one."""
    loss: float
    """Loss of the batch."""
    grad_norm: float
    """Global norm of the gradient of the trained parameters, before clipping."""
    update_norm: float
    """Global norm of the trained parameters' update."""
    param_norm: float
    """Global norm of the trained parameters before the update."""
    learning_rate: float
    """Learning rate of the training step."""
    applied: int
    """1, or 0 if the update was skipped because the loss or gradient is not finite."""
    step_s: float
    """Seconds since the training step, save or validation before it ended, waiting included."""
    data_wait_s: float
    """Upper bound of the seconds that the devices were idle while waiting for the batch."""
    memory_gb: float
    """Peak memory so far, in 10^9 bytes: of the first device, or of the process on a CPU."""
    batch_fingerprint: str
    """XXH3 of every byte of the batch."""
    align_loss: float | None = None
    """Unweighted alignment loss of the geometry tokens; None: the model does not align."""


OPTIONAL = tuple(field.name for field in dataclasses.fields(StepMetrics) if field.default is None)
"""The fields that a row may lack, as those of earlier releases do."""


def read_metrics(run_directory: pathlib.Path) -> list[StepMetrics]:
    """Reads the lines of a run's `metrics.jsonl`; empty if there is no such file.

    A last line that a kill truncated is left out: that step is repeated.

    Raises:
      DataError: A line is corrupt, or has other fields.
    """
    path = run_directory / METRICS_NAME
    return [_to_metrics(values, path) for _, values in read_lines(path)]


def _to_metrics(values: dict[str, Any], path: pathlib.Path) -> StepMetrics:
    expected = {field.name for field in dataclasses.fields(StepMetrics)}
    if values.keys() | set(OPTIONAL) == expected:
        # NaN is written as null.
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
        return StepMetrics(**known)
    raise DataError(
        where=f"{path}, step {values['step']}",
        expected=f"the fields {', '.join(sorted(expected))}",
        found=f"without {', '.join(sorted(expected - values.keys() - set(OPTIONAL))) or 'none'}, "
        f"with {', '.join(sorted(values.keys() - expected)) or 'no'} others",
        remedy="Read it with the release that wrote it.",
    )


def read_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
    """Returns each complete line's end and its fields; empty if the file does not exist."""
    # Without a final line break the last line may be cut short.
    *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if not _is_cut_short(last):
        # Only its line break is missing.
        lines.append(last)
    found = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    return [(f"{line.decode()}\n", values) for line, values in zip(lines, found, strict=True)]


def _is_cut_short(line: bytes) -> bool:
    """Returns whether the bytes after the last line break are not a whole JSON value."""
    try:
        # `raw_decode` accepts text after the value, which the parser below reports.
        json.JSONDecoder().raw_decode(line.decode(errors="replace"))
    except UNPARSABLE:
        return True
    return False


def _parse(line: bytes, where: str) -> dict[str, Any]:
    remedy = "Delete that line, or start a new run in another save_dir."
    values = from_json(line, where=where, remedy=remedy)
    if not isinstance(values.get("step"), int):
        expected, found = "a JSON object with a step", repr(line[:40].decode(errors="replace"))
        raise DataError(where=where, expected=expected, found=found, remedy=remedy)
    return values
