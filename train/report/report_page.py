"""The page of a run: what its template shows, computed from the run's files."""

import collections
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from pipeline.data.conventions import grippers_of
from pipeline.files import dump_json, write_text_atomically, writing
from pipeline.inspection.feature_names import split_unit
from pipeline.terminal import count, shortened
from train.checkpoints.run_directory import REPORT_NAME
from train.metrics.step_metrics import StepMetrics
from train.metrics.validation_files import EpisodePrediction
from train.octo.released.weights_report import LoadRow, Shape, Status
from train.report.charts import Chart, Curve, curves, draw, smooth, smoothing_window
from train.report.html_page import bar, duration, percent, render, short, three_digits
from train.report.report_inputs import NUM_LAST_STEPS, UNTRAINED, RunFiles, read_run

UNITS = {
    "normal": "1 is one standard deviation of the dimension over its dataset",
    "bounds": "2 is the range from the 1st to the 99th percentile of the dimension",
    "quantile": "2 is the range from the 1st to the 99th percentile of the dimension",
}
"""Meaning of an error of normalised actions, by `data.normalization`."""
_STATUSES: Mapping[Status, str] = {
    "loaded": "taken from the checkpoint",
    "resized": "taken from the checkpoint, resized to the model's shape",
    "new": "only the model has them: fresh values",
    "unused": "only the checkpoint has them: left out",
    "mismatched shape": "other shape in the checkpoint: fresh values",
}
"""How a tensor was used; the list of tensors begins with the last, which need attention."""
_MOMENTS = ["mean", "std", "min", "p01", "p99", "max"]
_MAX_DIMS = 32
"""Largest number of dimensions of a feature whose statistics are shown."""
_MAX_CHUNKS = 40
"""Largest number of chunks drawn in a chart."""
_MAX_TASKS = 500
"""Largest number of tasks whose errors are listed."""
_MAX_LINES, _MAX_LINE = 1000, 1000
"""Maximum number of lines of the config, and of characters of each."""
_MAX_FRAME_PIXELS = 256
_MAX_VIEWS_PIXELS, _MAX_VIEWS_BYTES = 2240, 800_000
"""A larger PNG of views, which might outweigh the page, becomes a JPEG of that width."""


def write_report(run_directory: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run directory, replacing an earlier one; returns its path.

    A missing file of the run is not an error: its section states the reason.

    Raises:
      UserError: The directory does not exist, holds no run, or cannot be written.
      DataError: A file of the run is corrupt.
    """
    path = run_directory / REPORT_NAME
    page = to_page(read_run(run_directory))
    with writing(path):
        write_text_atomically(path, page)
    return path


def to_page(run: RunFiles) -> str:
    """Returns the page of a run as HTML."""
    # A section that has nothing to show uses none of its values.
    return render(
        "run.html.j2",
        title=f"{run.name}: training report",
        kind="Training report",
        name=run.name,
        origin=describe_origin(run),
        figures=_figures(run),
        run=run,
        training=run.metrics and _training(run),
        quality=run.validation and _quality(run),
        episode=run.episode and _episode(run, run.episode),
        views=run.views and _fitting_views(run.views),
        weights=run.load_report and _weights(run.load_report.rows),
        source=_source(run),
        data=_datasets(run),
        config=_cut(dump_json(run.config).rstrip()),
    )


def _cut(text: str) -> str:
    """Cuts long lines and many of them: a config may list a million episodes or segments."""
    lines = text.splitlines()
    more = len(lines) - _MAX_LINES
    shown = [shortened(line, _MAX_LINE) for line in lines[:_MAX_LINES]]
    return "\n".join([*shown, *([f"... and {count(more, 'more line')}"] if more > 0 else [])])


def describe_origin(run: RunFiles) -> str:
    """Describes in a sentence what was trained, and on what."""
    source = _source(run)
    begun = f"Octo finetuned from {source}" if source else "Octo trained from random weights"
    data = ", ".join(str(values.get("name", path)) for path, values in run.datasets.items())
    parts = [f"{begun if run.config else 'Octo'}{data and f' on {data}'}"]
    if run.setting("batch_size"):
        parts.append(f"{count(run.setting('batch_size'), 'sample')} per step")
    tokens = dict.fromkeys(name for _, name, weights, _ in run.encoders if UNTRAINED in weights)
    if tokens:
        parts.append(f"tokens of {', '.join(tokens)} by untrained weights")
    return f"{'; '.join(parts)}."


def _source(run: RunFiles) -> str | None:
    """Returns where the weights to start from were; None: nowhere, as they were random."""
    return run.setting("pretrained_path") or run.setting("pretrained.part")


def _known(value: Any, form: Callable[[Any], str] = three_digits) -> str:
    return "\N{EN DASH}" if value is None else form(value)


def _figures(run: RunFiles) -> list[tuple[str, str, str]]:
    """Returns (name, value, detail) of the numbers at the top."""
    last, planned, batch = run.last_validation, *map(run.setting, ("num_steps", "batch_size"))
    validated = beside = f"step {last.step:,}" if last else "not validated"
    if last and not math.isnan(last.constant_error):
        beside = f"a constant: {three_digits(last.constant_error)}"
    wall_s = sum(one.step_s for one in run.metrics) or None
    waits = wall_s and sum(one.data_wait_s for one in run.metrics) / wall_s
    pace = wall_s and len(run.metrics) * (batch or 1) / wall_s
    skipped = sum(one.applied == 0 for one in run.metrics) if run.metrics else None
    return [
        ("Steps", _known(run.steps or None, "{:,}".format), f"of {planned:,}" if planned else ""),
        ("Final loss", _known(run.final_loss), f"last {NUM_LAST_STEPS} steps"),
        ("Validation loss", _known(last and last.loss), validated),
        ("Action error", _known(last and last.action_error), beside),
        ("Wall time", _known(wall_s, duration), "sum over steps"),
        ("Samples/s" if pace and batch else "Steps/s", _known(pace), "over all steps"),
        ("Wait share", _known(waits, percent), "waiting for data"),
        ("Skipped", _known(skipped, "{:,}".format), "updates"),
    ]


def _training(run: RunFiles) -> dict[str, Any]:
    """Returns how the run learned: loss, updates, throughput and memory."""
    names = {f.name for f in dataclasses.fields(StepMetrics)} - {"batch_fingerprint"}
    of = {n: np.array([getattr(one, n) for one in run.metrics], np.float64) for n in names}
    steps, batch, clip = of["step"], *map(run.setting, ("batch_size", "optimizer.clip_norm"))
    skipped = steps[of["applied"] == 0]
    loss = [
        *curves("train", steps, of["loss"], smoothed=True),
        *_validated(run, "loss"),
        Curve("skipped", skipped, skipped, mark="tick"),
    ]
    alt = f"Training loss over {count(len(steps), 'step')}, {_known(run.final_loss)} at the end."
    clipped = f"before clipping{f', clipped at {clip:g}' if clip else ''}"
    seconds = smooth(of["step_s"])
    # A model of zeros has no relative update.
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = of["update_norm"] / of["param_norm"]
        pace = (batch or 1) / seconds
        waits = 100 * smooth(of["data_wait_s"]) / seconds
    updates = [
        _panel(run, "Gradient norm", clipped, of["grad_norm"], smoothed=True),
        _panel(run, "Learning rate", "of every step", of["learning_rate"]),
        _panel(run, "Relative update", "share of parameter norm", relative, smoothed=True),
    ]
    of_pace = [
        _panel(run, "Throughput", f"{'samples' if batch else 'steps'} per second", pace),
        _panel(run, "Wait share", "% of time spent waiting for data", waits),
    ]
    if of["memory_gb"].any():
        of_pace.append(_panel(run, "Device memory", "GB, peak so far", of["memory_gb"]))
    return {
        "window": smoothing_window(len(steps)),
        "loss": draw(("", "", alt), loss, _end(run), num_parts=5),
        "align": np.isfinite(of["align_loss"]).any()
        and _panel(run, "Alignment loss", "before weighting", of["align_loss"], smoothed=True),
        "skipped": f"skipped update ({len(skipped):,})" if len(skipped) else "",
        "updates": updates,
        "pace": of_pace,
    }


def _panel(
    run: RunFiles, title: str, detail: str, values: np.ndarray, *, smoothed: bool = False
) -> Chart:
    """Draws a value of every training step."""
    steps = np.array([one.step for one in run.metrics], np.float64)
    # A skipped update leaves no finite value.
    finite = values[np.isfinite(values)]
    ends = f"{three_digits(finite[-1])} at the end" if len(finite) else "none is finite"
    words = (title, detail, f"{title}{detail and f' ({detail})'} over the steps; {ends}.")
    shown = curves("train", steps, values, smoothed=smoothed)
    return draw(words, shown, _end(run), from_zero=not smoothed)


def _validated(run: RunFiles, field: str) -> list[Curve]:
    """Returns a field of every validation as curves."""
    steps = np.array([one.step for one in run.validation], np.float64)
    return curves("validation", steps, np.array([getattr(one, field) for one in run.validation]))


def _end(run: RunFiles) -> int:
    """Returns the step at which all curves over the training end."""
    return max([run.steps, *(one.step for one in run.validation)])


def _quality(run: RunFiles) -> dict[str, Any]:
    """Returns the errors of the validations: over training, by dimension and by task."""
    stages = list({one.step: one for one in (run.validation[0], run.validation[-1])}.values())
    first, last, constants = stages[0], stages[-1], stages[-1].constant_by_dim
    largest = max([*first.by_dim.values(), *last.by_dim.values(), *constants.values(), 1e-12])
    dims = []
    for name, error in last.by_dim.items():
        errors = [one.by_dim.get(name) for one in stages]
        before = errors[0] if len(stages) > 1 else None
        change = f"{100 * (error / before - 1):+.0f} %" if before else ""
        dims.append(
            [
                split_unit(name)[0],
                bar(error, largest, first=before, constant=constants.get(name)),
                *map(_known, errors),
                *[change.replace("-", "\N{MINUS SIGN}")] * (len(stages) > 1),
                *[_known(constants.get(name))] * bool(constants),
            ]
        )
    tasks = sorted(last.by_task.items(), key=lambda item: (-item[1], item[0]))
    errors = [three_digits(one.action_error) for one in stages]
    alt = f"Action error of {len(run.validation)} validations: {' to '.join(errors)}."
    words = ("All dimensions", "normalised", alt)
    return {
        "last": last,
        "unit": UNITS.get(str(run.setting("data.normalization"))),
        "constant": None if math.isnan(last.constant_error) else last.constant_error,
        "stages": stages,
        "steps": [f"step {one.step:,}" for one in stages],
        "error": draw(words, _validated(run, "action_error"), _end(run), from_zero=True),
        "dims": dims,
        "most_tasks": _MAX_TASKS,
        "tasks": [
            (text or "(no instruction)", three_digits(error), bar(error, tasks[0][1] or 1.0))
            for text, error in tasks
        ],
    }


def _episode(run: RunFiles, episode: EpisodePrediction) -> dict[str, Any]:
    """Returns chunks along an episode, and its frames."""
    every = chunk_interval(*episode.chunks.shape[:2])
    images = run.setting("model.images") or []
    cameras = [str(image.get("observation_key")) for image in images if isinstance(image, dict)]
    if len(cameras) != len(episode.frames):
        cameras = [f"camera {number}" for number in range(1, len(episode.frames) + 1)]
    return {
        "every": "step" if every == 1 else f"{every} steps",
        "chunks": [_chunk_chart(episode, dim, every) for dim in range(len(episode.dims))],
        "cameras": cameras,
        "frames": [
            (step, [_jpeg(Image.fromarray(of[n]), _MAX_FRAME_PIXELS) for of in episode.frames])
            for n, step in enumerate(episode.frame_steps.tolist())
        ],
    }


def chunk_interval(num_steps: int, horizon: int) -> int:
    """Returns the steps between drawn chunks: they do not overlap, and are not too many to see.

    120 steps, chunks of 4    4
    400 steps, chunks of 4    10
    """
    return max(horizon, -(-num_steps // _MAX_CHUNKS))


def chunk_error(actions: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Returns the mean absolute error of all predicted actions in the episode; float64 (dims).

    Args:
      actions: Recorded actions (steps, dims).
      chunks: Predicted chunks (steps, horizon, dims).
    """
    num_steps, horizon, _ = chunks.shape
    wanted = np.arange(num_steps)[:, None] + np.arange(horizon)
    # Actions past the episode's end were never recorded.
    is_real = wanted < num_steps
    return np.abs(chunks[is_real] - actions[wanted[is_real]]).mean(axis=0, dtype=np.float64)


def _chunk_chart(episode: EpisodePrediction, dim: int, every: int) -> Chart:
    """Draws the recorded values of one dimension as a line, and chunks as lines from dots."""
    actions, chunks = episode.actions[:, dim : dim + 1], episode.chunks[:, :, dim : dim + 1]
    # The median minimises the absolute error.
    median = np.broadcast_to(np.median(actions).astype(actions.dtype), chunks.shape)
    error, constant = (float(chunk_error(actions, found)[0]) for found in (chunks, median))
    label, unit = split_unit(episode.dims[dim])
    errors = f"error {three_digits(error)}, constant {three_digits(constant)}"
    detail = f"{unit}, {errors}" if unit else errors
    num_steps, horizon, _ = chunks.shape
    starts = np.arange(0, num_steps, every)
    # One more step than a chunk has, for the gap between chunks; the last ones leave the episode.
    steps = starts[:, None] + np.arange(horizon + 1)
    values = np.pad(chunks[starts, :, 0], ((0, 0), (0, 1)), constant_values=np.nan)
    values = np.where(steps < num_steps, values, np.nan)
    shown = [
        Curve("recorded", np.arange(num_steps), actions[:, 0]),
        Curve("chunk", steps.ravel(), values.ravel()),
        Curve("chunk", starts, chunks[starts, 0, 0], mark="dots"),
    ]
    alt = f"{label}: recorded and predicted actions; {detail}."
    return draw((label, detail, alt), shown, num_steps - 1)


def _fitting_views(content: bytes) -> bytes:
    if len(content) <= _MAX_VIEWS_BYTES:
        return content
    with Image.open(io.BytesIO(content)) as image:
        return _jpeg(image.convert("RGB"), _MAX_VIEWS_PIXELS)


def _jpeg(image: Image.Image, max_width: int) -> bytes:
    image.thumbnail((max_width, image.height))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def _weights(rows: Sequence[LoadRow]) -> dict[str, Any]:
    """Returns how the tensors of the model and of the checkpoint were used."""
    tensors = collections.Counter(row.status for row in rows)
    sizes = collections.Counter[Status]()
    for row in rows:
        sizes[row.status] += math.prod(row.target_shape or row.checkpoint_shape or ())
    whole, order = sizes.total() or 1, list(_STATUSES)
    return {
        "statuses": [
            [
                Markup("{}<small>{}</small>").format(status, meaning),
                bar(sizes[status] / whole),
                f"{tensors[status]:,}",
                f"{sizes[status]:,}",
                percent(sizes[status] / whole),
            ]
            for status, meaning in _STATUSES.items()
            if tensors[status]
        ],
        "tensors": [
            [row.path, row.status, _shape(row.target_shape), _shape(row.checkpoint_shape), row.how]
            for row in sorted(rows, key=lambda row: (-order.index(row.status), row.path))
        ],
    }


def _shape(shape: Shape | None) -> str:
    times = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}\N{NO-BREAK SPACE}"
    return _known(shape, lambda lengths: times.join(map(str, lengths)) or "scalar")


def _datasets(run: RunFiles) -> dict[str, Any]:
    """Returns the datasets, the meaning of their values, and their statistics."""
    normalizations = {str(one.get("normalization", "not known")) for one in run.datasets.values()}
    return {
        "normalizations": ", ".join(sorted(normalizations)),
        "moments": _MOMENTS,
        "rows": [dataset_row(one) for one in run.datasets.values()],
        "statistics": {path: _statistics(run, one) for path, one in run.datasets.items()},
    }


def dataset_row(values: Mapping[str, Any]) -> list[str]:
    """Returns a dataset's name, steps, conventions and licences, and its checksum as HTML."""
    conventions = values.get("conventions", {})
    steps = values.get("statistics", {}).get("action", {}).get("count")
    hz = conventions.get("control_frequency_hz")
    names = ("image_orientation", "rotation", "no_ops")
    grippers = [
        f"dimension {one.dim}{'' if one.kind == 'binary' else f' ({one.kind})'}, "
        f"open {short(one.open)}, close {short(one.close)}"
        for one in grippers_of(conventions)
    ]
    digest = str(values.get("digest", ""))
    return [
        str(values.get("name", "")),
        "" if steps is None else f"{steps:,}",
        "" if hz is None else f"{hz:g}",
        *(str(conventions.get(name) or "").replace("_", " ") for name in names),
        "; ".join(grippers) or "none",
        ", ".join(dict.fromkeys(map(str, values.get("licences", {}).values()))),
        Markup('<code title="{}">{}</code>').format(digest, digest[:12]),
    ]


def _statistics(run: RunFiles, dataset: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Returns caption and rows of a table per feature, with one row per dimension."""
    by_dim = run.last_validation.by_dim if run.last_validation else ()
    action_dims = run.episode.dims if run.episode else tuple(by_dim)
    tables = []
    for name, values in dataset.get("statistics", {}).items():
        columns = [values.get(moment, []) for moment in _MOMENTS]
        num_dims = min(map(len, columns))
        dims = dataset.get("statistics_dims", {}).get(name)
        dims = dims or dataset.get("features", {}).get(name, {}).get("dims", ())
        dims = dims or (action_dims if name == "action" else ())
        names = dims if len(dims) == num_dims else range(num_dims)
        rows = [
            [str(dim), *map(three_digits, moments)]
            for dim, *moments in zip(names, *columns, strict=False)
        ]
        more = f", the first {_MAX_DIMS} of {num_dims} dimensions" if num_dims > _MAX_DIMS else ""
        caption = f"{name}, {count(values.get('count', 0), 'step')}{more}"
        tables.append((caption, rows[:_MAX_DIMS]))
    return tables
