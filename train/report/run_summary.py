"""Summarizes a run in a few numbers."""

import dataclasses

import numpy as np

from train.report.curve_series import to_columns
from train.report.report_inputs import RunFiles

NUM_LAST_STEPS = 20
"""Number of last training steps whose mean loss is reported as the run's."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Key numbers of a run; None for those that its files lack."""

    steps: int | None
    """Training steps taken."""
    loss: float | None
    """Mean loss of the last 20 training steps, without losses that are not finite."""
    validation_loss: float | None
    """Loss at the last validation."""
    action_error: float | None
    """Action error at the last validation."""
    constant_error: float | None
    """Error of the best constant action, the median, at the last validation."""
    wall_s: float | None
    """Seconds of all training steps together."""
    steps_per_s: float | None
    """Training steps per second, over all steps."""
    samples_per_s: float | None
    """Samples per second, over all steps."""
    wait_share: float | None
    """Fraction of the time spent waiting for batches."""
    skipped: int | None
    """Number of skipped updates."""


def summarize(run: RunFiles) -> Summary:
    """Computes the key numbers of a run."""
    last = run.validation[-1] if run.validation else None
    unknown = Summary(
        steps=None,
        loss=None,
        validation_loss=last and last.loss,
        action_error=last and last.action_error,
        constant_error=last and (None if np.isnan(last.constant_error) else last.constant_error),
        wall_s=None,
        steps_per_s=None,
        samples_per_s=None,
        wait_share=None,
        skipped=None,
    )
    if not run.metrics:
        return unknown
    columns = to_columns(run.metrics)
    wall_s = float(columns["step_s"].sum())
    steps_per_s = len(run.metrics) / wall_s if wall_s else None
    batch_size = run.setting("batch_size")
    losses = columns["loss"][-NUM_LAST_STEPS:]
    # A skipped update has no finite loss.
    losses = losses[np.isfinite(losses)]
    return dataclasses.replace(
        unknown,
        steps=run.metrics[-1].step,
        loss=float(losses.mean()) if len(losses) else None,
        wall_s=wall_s,
        steps_per_s=steps_per_s,
        samples_per_s=steps_per_s * batch_size if steps_per_s and batch_size else None,
        wait_share=float(columns["data_wait_s"].sum()) / wall_s if wall_s else None,
        skipped=int((columns["applied"] == 0).sum()),
    )
