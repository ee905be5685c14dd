"""Sections on the quality of the model: its action errors by dimension and by task."""

import math

from pipeline.inspection.feature_names import split_unit
from pipeline.terminal import count
from train.metrics.validation_files import ValidationMetrics
from train.report.charts import Size, draw_curve
from train.report.markup import Html, join, percent, tag, three_digits
from train.report.page_parts import absent, bar, folded, key, legend, note, panel, section, table
from train.report.report_inputs import RunFiles
from train.report.training_section import validation_line

NOTHING_HELD_OUT = "No episodes were held out: set data.validation_fraction."
_NOT_VALIDATED = "The run has not been validated: validation.jsonl is missing or empty."
_MAX_TASKS = 24
"""Largest number of tasks that are shown at once."""
_UNITS = {
    "normal": "1 is one standard deviation of the dimension over its dataset",
    "bounds": "2 is the range from the 1st to the 99th percentile of the dimension",
    "quantile": "2 is the range from the 1st to the 99th percentile of the dimension",
}
"""Meaning of an error of normalised actions, by `data.normalization`."""


def error_section(run: RunFiles) -> Html:
    """Shows the action error over training, and by dimension at first and last validation."""
    title = "Action error"
    if not run.validation:
        return section(title, absent(why_not_validated(run)), anchor="error")
    first, last = run.validation[0], run.validation[-1]
    place = "held-out episodes" if run.holds_out else "episodes that it was trained on"
    samples = count(last.num_samples, "sample")
    text = f"Mean absolute error of sampled chunks on {samples} of {place}, normalised"
    unit = _UNITS.get(str(run.setting("data.normalization")))
    about = note(f"{text}: {unit}. A gripper counts from 0 to 1." if unit else f"{text}.")
    if not math.isnan(last.constant_error):
        about = join([about, note(_versus_constant(last))])
    inner = [_dim_table(first, last)]
    if len(run.validation) > 1:
        inner.insert(0, _error_curve(run))
    return section(title, about, tag("div", *inner, class_="split"), anchor="error")


def _versus_constant(last: ValidationMetrics) -> str:
    constant = last.constant_error
    share = f", {percent(last.action_error / constant)} of it" if constant else ""
    return (
        "The best constant action, the median of these samples, has an error of "
        f"{three_digits(constant)}; the model has {three_digits(last.action_error)}{share}."
    )


def task_section(run: RunFiles) -> Html:
    """Shows the action error of each task at the last validation, the worst first."""
    title = "Error by task"
    if not run.validation:
        return section(title, absent(why_not_validated(run)), anchor="tasks")
    last = run.validation[-1]
    if not last.by_task:
        return section(title, absent("The last validation names no tasks."), anchor="tasks")
    errors = sorted(last.by_task.items(), key=lambda item: (-item[1], item[0]))
    largest = errors[0][1] or 1.0
    items = [_task_item(text, error, error / largest) for text, error in errors]
    shown = [tag("ol", *items[:_MAX_TASKS], class_="bars")]
    if items[_MAX_TASKS:]:
        rest = tag("ol", *items[_MAX_TASKS:], class_="bars", start=_MAX_TASKS + 1)
        shown.append(folded(f"{count(len(items) - _MAX_TASKS, 'task')} with smaller errors", rest))
    about = note(f"Mean absolute error of normalised actions at step {last.step:,}, worst first.")
    return section(title, about, *shown, anchor="tasks")


def why_not_validated(run: RunFiles) -> str:
    """Returns why there are no validations."""
    fraction = run.setting("data.validation_fraction")
    return NOTHING_HELD_OUT if fraction == 0 else _NOT_VALIDATED


def _error_curve(run: RunFiles) -> Html:
    line, last = validation_line(run, "action_error"), run.validation[-1]

    def draw(size: Size) -> str:
        return draw_curve(line, size, last.step, from_zero=True)

    alt = (
        f"Action error of {len(run.validation)} validations, from "
        f"{three_digits(run.validation[0].action_error)} to {three_digits(last.action_error)}."
    )
    return panel(draw, alt, "All dimensions", "normalised")


def _dim_table(first: ValidationMetrics, last: ValidationMetrics) -> Html:
    largest = max([*first.by_dim.values(), *last.by_dim.values(), 1e-12])
    if first.step == last.step:
        caption = f"Error by dimension at step {last.step:,}"
        rows = [
            [_dim_name(name), bar(error / largest), three_digits(error), *_constant(last, name)]
            for name, error in last.by_dim.items()
        ]
        return table(["dimension", "", ">error", *_constant_heading(last)], rows, caption)
    rows = []
    for name, error in last.by_dim.items():
        before = first.by_dim.get(name)
        rows.append(
            [
                _dim_name(name),
                bar(error / largest, None if before is None else before / largest),
                "" if before is None else three_digits(before),
                three_digits(error),
                _change(before, error),
                *_constant(last, name),
            ]
        )
    headings = ["dimension", "", f">step {first.step:,}", f">step {last.step:,}", ">change"]
    headings += _constant_heading(last)
    keys = legend(key("bar", "last validation"), key("tick", "first validation"))
    caption = "Error by dimension at the first and the last validation"
    return tag("div", keys, table(headings, rows, caption))


def _constant_heading(last: ValidationMetrics) -> list[str]:
    return [">constant"] if last.constant_by_dim else []


def _constant(last: ValidationMetrics, name: str) -> list[str]:
    """Returns the error of the median action in a dimension; empty if it was not measured."""
    if not last.constant_by_dim:
        return []
    found = last.constant_by_dim.get(name)
    return ["" if found is None else three_digits(found)]


def _change(before: float | None, after: float) -> str:
    """Formats the change in percent of the value before."""
    if not before:
        return ""
    return f"{100 * (after / before - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")


def _dim_name(name: str) -> str:
    return split_unit(name)[0]


def _task_item(text: str, error: float, share: float) -> Html:
    words = tag("span", text or "(no instruction)", class_="label")
    return tag("li", words, tag("span", three_digits(error), class_="value"), bar(share))
