"""What each call and command costs on datasets of a thousand to a million episodes.

    python -m benchmarks.million_episodes DIRECTORY

DIRECTORY keeps the datasets, which `benchmarks.episode_sets` writes where they are missing: sets of
episodes of two steps, 3 GB for a million, and the manifest of 225 million steps without records.
Each measurement is a process of its own. CPU seconds count all threads, and of commands the imports
too. MB are the largest resident set. Each figure is a JSON line at once; a Markdown table follows.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, NamedTuple

import tyro

from benchmarks import measuring
from pipeline.errors import UserError, user_errors_exit

Figures = dict[str, float | str]
_CONFIG = pathlib.Path(__file__).with_name("episode_config.py")
_MANIFEST = "manifest"
_MANIFEST_STEPS = 225_000_000


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures what datasets of many episodes cost."""

    directory: tyro.conf.Positional[pathlib.Path]
    """Where the datasets and runs are kept."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Numbers of episodes."""
    manifest_episodes: int = 1_000_000
    """Episodes of the manifest without records; 0: it is not measured."""
    only: tuple[str, ...] = ()
    """What is measured, by name; empty: all."""
    timeout_s: float = 900.0
    """A measurement that takes longer is given up."""


class Row(NamedTuple):
    """One measurement on every dataset."""

    name: str
    """What is measured; a call of `benchmarks.episode_costs`, or any text."""
    command: Callable[["Place"], list[str]] | None = None
    """Returns the command whose process is measured; None: the call of that name is."""
    needs_records: bool = False
    """Whether a dataset without records is left out."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A dataset and where its runs are written."""

    dst: pathlib.Path
    """Dataset directory."""
    run: pathlib.Path
    """Run directory."""
    has_records: bool
    """Whether its records can be read."""


def main() -> None:
    """Parses the command line and prints figures, then a table."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.million_episodes", use_underscores=True)
        rows = _chosen(args.only)
        args.directory.mkdir(parents=True, exist_ok=True)
        places = {f"{size:,} episodes": _written(args.directory, size) for size in args.sizes}
        if args.manifest_episodes:
            name = f"{args.manifest_episodes:,}, {_MANIFEST_STEPS / 1e6:,.0f} M steps"
            places[name] = _written(args.directory, args.manifest_episodes, _MANIFEST_STEPS)
        cells = {row.name: _measured(row, places, args) for row in rows}
        sys.stdout.write(_table(cells, list(places)))


def _chosen(names: Sequence[str]) -> list[Row]:
    """Returns the rows of some names, or all.

    Raises:
      UserError: There is no such row.
    """
    unknown = set(names) - {row.name for row in _ROWS}
    if unknown:
        raise UserError(
            where="--only",
            expected="; ".join(row.name for row in _ROWS),
            found="; ".join(sorted(unknown)),
            remedy="Name some of these.",
        )
    return [row for row in _ROWS if row.name in names or not names]


def _written(directory: pathlib.Path, num_episodes: int, num_steps: int | None = None) -> Place:
    """Writes a dataset where it is missing."""
    name = f"{num_episodes}" if num_steps is None else f"{_MANIFEST}_{num_episodes}"
    dst = directory / name
    if not (dst / "dataset.json").exists():
        steps = [] if num_steps is None else ["--num_steps", f"{num_steps}"]
        words = (str(dst), "--num_episodes", f"{num_episodes}", *steps)
        subprocess.run(measuring.module("benchmarks.episode_sets", *words), check=True)
    return Place(dst, directory / f"run_{name}", num_steps is None)


def _measured(row: Row, places: dict[str, Place], args: Args) -> list[str]:
    """Measures one row of the table; its cells."""
    cells = []
    for column, place in places.items():
        if row.needs_records and not place.has_records:
            cells.append("")
            continue
        figures = _measure(row, place, args.timeout_s)
        measuring.print_figures({"what": row.name, "of": column, **figures})
        cells.append(_cell(figures))
    return cells


def _measure(row: Row, place: Place, timeout_s: float) -> Figures:
    if row.command is not None:
        return _run(row.command(place), timeout_s)
    found = _run(measuring.module("benchmarks.episode_costs", row.name, str(place.dst)), timeout_s)
    # What the process says of the call alone, without its imports.
    return found if "error" in found else json.loads(str(found["last_line"]))


def _run(command: Sequence[str], timeout_s: float) -> Figures:
    """Returns CPU seconds and MB of a process, and the size and the last line of its output."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        # `Popen.wait` would not say what the process used.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
        printed, errors = (_content(file) for file in (out, err))
    if process.returncode:
        return {"error": (errors or printed).strip().rpartition("\n")[2] or str(process.returncode)}
    return {
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mb": round(used.ru_maxrss / 1e3),
        "printed_kb": round((len(printed) + len(errors)) / 1e3, 1),
        "last_line": printed.strip().rpartition("\n")[2][:200],
    }


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _cell(figures: Figures) -> str:
    if "error" in figures:
        return "failed"
    return f"{figures['cpu_s']:.3g} s, {figures['peak_mb']:,.0f} MB"


def _table(rows: dict[str, list[str]], columns: list[str]) -> str:
    """Formats a Markdown table."""
    head = ["CPU seconds, largest resident set", *columns]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _octograin(*words: str | pathlib.Path) -> list[str]:
    return measuring.module("octograin", *map(str, words))


def _train(place: Place, *words: str) -> list[str]:
    flags = (f"--config.data.datasets.0.path={place.dst}", f"--config.save_dir={place.run}")
    return _octograin("train", "--config", _CONFIG, *flags, "--overwrite", *words)


def _edited(place: Place) -> pathlib.Path:
    """Returns a copy of a dataset with the same shards."""
    copy = _gone(place, "edited")
    shutil.copytree(place.dst, copy, copy_function=os.link)
    return copy


def _gone(place: Place, kind: str) -> pathlib.Path:
    """Returns a directory beside a dataset, without what an earlier measurement left there."""
    out = place.dst.with_name(f"{kind}_{place.dst.name}")
    shutil.rmtree(out, ignore_errors=True)
    return out


_ROWS = (
    Row("open_dataset"),
    Row("open_loader"),
    Row("open_loader with a split"),
    Row("select: all"),
    Row("select: instructions"),
    Row("select: weights"),
    Row("select: trim"),
    Row("select: list of episodes"),
    Row("select: split"),
    Row("order of 100 batches"),
    Row("state of a loader"),
    Row("opening and one batch", needs_records=True),
    Row("inspect", lambda place: _octograin("inspect", place.dst)),
    Row("inspect --json", lambda place: _octograin("inspect", place.dst, "--json")),
    Row(
        "inspect --plot",
        lambda place: _octograin("inspect", place.dst, "--plot", place.dst.with_suffix(".png")),
        needs_records=True,
    ),
    Row(
        "inspect --episode 7",
        lambda place: _octograin("inspect", place.dst, "--episode", "7"),
        needs_records=True,
    ),
    Row("card of the dataset"),
    Row("train --dry_run", lambda place: _train(place, "--dry_run"), needs_records=True),
    Row("train, 4 steps and a validation", _train, needs_records=True),
    Row("report", lambda place: _octograin("report", place.run), needs_records=True),
    Row("edit --failed 3", lambda place: _octograin("edit", _edited(place), "--failed", "3")),
    Row(
        "edit --exclude 3",
        lambda place: _octograin("edit", _edited(place), "--exclude", "3"),
        needs_records=True,
    ),
    Row("reading every record", needs_records=True),
    Row("verify", lambda place: _octograin("verify", place.dst), needs_records=True),
    Row(
        "export --to lerobot --image",
        lambda place: _octograin(
            *("export", place.dst, _gone(place, "lerobot"), "--to", "lerobot", "--image")
        ),
        needs_records=True,
    ),
)


if __name__ == "__main__":
    main()
