"""The numbers of a run that a colleague asks for first."""

import dataclasses

import numpy as np

from train.report.inputs import RunFiles
from train.report.series import to_columns

NUM_LAST_STEPS = 20
"""Last steps whose mean loss is the run's."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run in a line; None where its files do not say."""

    steps: int | None
    """Taken."""
    loss: float | None
    """Mean of the last 20 steps, without those whose loss is not finite."""
    validation_loss: float | None
    """Of the last validation."""
    action_error: float | None
    """Of the last validation."""
    constant_error: float | None
    """Of the median action, which never changes, at the last validation."""
    wall_s: float | None
    """Seconds of all steps together."""
    steps_per_s: float | None
    """Over all steps."""
    samples_per_s: float | None
    """Over all steps."""
    wait_share: float | None
    """Of the seconds: spent waiting for batches."""
    skipped: int | None
    """Updates that were not applied."""


def summarize(run: RunFiles) -> Summary:
    """The numbers of a run."""
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
