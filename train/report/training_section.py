"""Sections on how the run learned: loss, updates, throughput and memory."""

import numpy as np

from pipeline.terminal import count
from train.report.charts import Line, Size, draw_curve, draw_loss
from train.report.curve_series import binned_ratio, smoothing_window, to_columns
from train.report.markup import Html, three_digits
from train.report.page_parts import absent, key, legend, panel, panels, section, wide_chart
from train.report.report_inputs import RunFiles
from train.report.run_summary import Summary
from train.report.styles import ORANGE

_NO_METRICS = "No step was logged: metrics.jsonl is missing or empty."


def loss_section(run: RunFiles, summary: Summary) -> Html:
    """Shows the loss over training, in training and in validation."""
    if not run.metrics:
        return section("Loss", absent(_NO_METRICS), anchor="loss")
    columns = to_columns(run.metrics)
    train = Line(columns["step"], columns["loss"])
    validation = validation_line(run, "loss")
    skipped = columns["step"][columns["applied"] == 0]

    def draw(size: Size) -> str:
        return draw_loss(train, validation, skipped, size, _last_step(run))

    keys = [key("raw", "training, every step"), key("train", _smoothed(run))]
    if run.validation:
        keys.append(key("validation", f"validation, on {_validated_on(run)}"))
    if len(skipped):
        keys.append(key("skipped", f"skipped update ({len(skipped):,})"))
    ends = "" if summary.loss is None else f", {three_digits(summary.loss)} at the end"
    alt = f"Training loss over {count(len(run.metrics), 'step')}{ends}."
    return section("Loss", wide_chart(draw, alt, legend(*keys)), anchor="loss")


def validation_line(run: RunFiles, field: str) -> Line:
    """Returns a field of every validation by training step."""
    steps = np.array([one.step for one in run.validation], np.float64)
    return Line(steps, np.array([getattr(one, field) for one in run.validation], float), ORANGE)


def _validated_on(run: RunFiles) -> str:
    return "held-out episodes" if run.holds_out else "fixed samples of the training episodes"


def optimizer_section(run: RunFiles) -> Html:
    """Shows gradient norm, learning rate and size of the updates over training."""
    if not run.metrics:
        return section("Updates", absent(_NO_METRICS), anchor="updates")
    columns = to_columns(run.metrics)
    steps, last_step = columns["step"], _last_step(run)
    # A model of zeros has no relative update.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = columns["update_norm"] / columns["param_norm"]
    clip = run.setting("optimizer.clip_norm")
    clipped = f", clipped at {clip:g}" if clip else ""
    charts = [
        ("Gradient norm", f"before clipping{clipped}", columns["grad_norm"], True),
        ("Learning rate", "", columns["learning_rate"], False),
        ("Relative update", "share of parameter norm", ratio, True),
    ]
    figures = [
        panel(
            # Default arguments bind the values of this round.
            lambda size, values=values, smoothed=smoothed: draw_curve(
                Line(steps, values), size, last_step, smoothed=smoothed, from_zero=not smoothed
            ),
            f"{title} over the steps; {three_digits(float(values[-1]))} at the last one.",
            title,
            detail,
        )
        for title, detail, values, smoothed in charts
    ]
    keys = legend(key("raw", "every step"), key("train", _smoothed(run)))
    return section("Updates", keys, panels(*figures), anchor="updates")


def pace_section(run: RunFiles) -> Html:
    """Shows samples per second, the fraction of time waiting for data, and memory."""
    if not run.metrics:
        return section("Pace and memory", absent(_NO_METRICS), anchor="pace")
    columns = to_columns(run.metrics)
    batch_size, last_step = run.setting("batch_size"), _last_step(run)
    steps, seconds = columns["step"], columns["step_s"]
    samples = np.full(len(steps), float(batch_size or 1))
    unit = "samples per second" if batch_size else "steps per second"
    pace = Line(*binned_ratio(steps, samples, seconds))
    shares = Line(*binned_ratio(steps, 100 * columns["data_wait_s"], seconds))
    charts = [
        ("Throughput", unit, pace),
        ("Wait share", "% of time spent waiting for data", shares),
    ]
    if columns["memory_gb"].max() > 0:
        charts.append(("Device memory", "GB, peak so far", Line(steps, columns["memory_gb"])))
    figures = [
        panel(
            # Default arguments bind the line of this round.
            lambda size, line=line: draw_curve(line, size, last_step, from_zero=True),
            f"{title} ({detail}) over the steps; {_mean(line)} on average.",
            title,
            detail,
        )
        for title, detail, line in charts
    ]
    return section("Pace and memory", panels(*figures), anchor="pace")


def _smoothed(run: RunFiles) -> str:
    return f"mean of {smoothing_window(len(run.metrics))} steps"


def _mean(line: Line) -> str:
    return three_digits(float(line.values.mean())) if len(line.values) else "nothing"


def _last_step(run: RunFiles) -> int:
    """Returns the training step at which all curves end."""
    validated = [run.validation[-1].step] if run.validation else []
    return max([run.metrics[-1].step, *validated])
