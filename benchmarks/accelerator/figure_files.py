"""Completes the figures, and writes them as JSON and Markdown after each one."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from pipeline.files import write_text_atomically

Row = dict[str, Any]
JSON_NAME = "accelerator.json"
MARKDOWN_NAME = "accelerator.md"
_COLUMNS = {
    "card": {
        "measurement": "measurement",
        "bfloat16_tflop_s": "bfloat16, TFLOP/s",
        "float32_default_tflop_s": "float32 by default",
        "float32_highest_tflop_s": "float32 highest",
        "read_and_written_gb_s": "copied, GB/s",
        "failed": "failed",
    },
    "step": {
        "measurement": "training step",
        "step_ms": "ms",
        "dispatch_ms": "dispatch, ms",
        "samples_s": "samples/s",
        "model_tflop_s": "TFLOP/s",
        "percent_of_matmul": "% of matmul rate",
        "peak_gb": "peak, GB",
        "planned_gb": "planned by XLA",
        "estimated_gb": "estimated by the dry run",
        "compile_s": "compile, s",
        "failed": "failed",
    },
    "vggt": {
        "measurement": "VGGT",
        "frames_s": "frames/s",
        "model_tflop_s": "TFLOP/s",
        "percent_of_matmul": "% of matmul rate",
        "peak_gb": "peak, GB",
        "failed": "failed",
    },
    "run": {
        "measurement": "run fed by the loader",
        "step_ms": "ms",
        "samples_s": "samples/s",
        "loader_wait_percent": "waiting, %",
        "loader_threads": "threads",
        "batch_mb": "batch, MB",
        "peak_gb": "peak, GB",
        "failed": "failed",
    },
    "policy": {
        "measurement": "one prediction",
        "median_ms": "median, ms",
        "p99_ms": "99 %, ms",
        "start_s": "start, s",
        "failed": "failed",
    },
    "repeat": {
        "measurement": "the same training steps twice",
        "steps": "steps",
        "losses_identical": "losses identical",
        "parameters_identical": "parameters identical",
        "failed": "failed",
    },
    "profile": {
        "measurement": "kernels of a training step",
        "kernel_ms_per_step": "ms",
        "kernels_per_step": "number",
        "failed": "failed",
    },
}
_CARD = ("matmul", "copy", "card")


def with_share(row: Row, rows: Sequence[Row]) -> Row:
    """Returns the row with its rate in per cent of the matrix products of the same run."""
    rates = next((one for one in rows if one.get("measurement") == "matmul"), {})
    rate = rates.get(row.get("compared_with", "bfloat16_tflop_s"))
    if rate is None or "model_tflop_s" not in row:
        return row
    return row | {"percent_of_matmul": round(100 * row["model_tflop_s"] / rate, 2)}


def write_files(directory: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes all figures so far; a kill leaves the files of the figure before or of this one."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_text_atomically(directory / JSON_NAME, f"[\n{lines}\n]\n")
    write_text_atomically(directory / MARKDOWN_NAME, to_markdown(rows))


def to_markdown(rows: Sequence[Row]) -> str:
    """Returns one table per kind of measurement, and the largest kernels of each profile."""
    parts = ["# Figures of an accelerator"]
    parts += [_machine(row) for row in rows if row.get("measurement") == "machine"]
    for kind, columns in _COLUMNS.items():
        of_kind = [row for row in rows if _kind(row) == kind]
        used = {key: title for key, title in columns.items() if any(key in row for row in of_kind)}
        if of_kind:
            parts.append(_table(of_kind, used))
        for row in of_kind:
            if "largest" in row:
                titles = {"kernel": row["measurement"], "ms": "ms", "percent": "%"}
                parts.append(_table(row["largest"], titles))
    return "\n\n".join(parts) + "\n"


def _machine(row: Row) -> str:
    """Returns a line about the machine, such as `device: 1 x NVIDIA H200; host_cpus: 16; ...`."""
    packages = ", ".join(f"{name} {version}" for name, version in row["packages"].items())
    shown = {key: value for key, value in row.items() if key != "measurement" and value}
    return "; ".join(f"{key}: {value}" for key, value in (shown | {"packages": packages}).items())


def _kind(row: Row) -> str:
    first = row.get("measurement", "").split(":")[0]
    return "card" if first in _CARD else first


def _table(rows: Sequence[Row], columns: dict[str, str]) -> str:
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[str(row.get(key, "")).replace("|", "/") for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
