"""`python killed_column.py DATASET OUT`: changes a column, is killed, and does so again.

It adds one, replaces it in one job and in parts, and removes it.

The sibling of `killed.py`, and a script for the same reason: it forks. The column's values are made
here, without an encoder, which would start threads. Prints one JSON object.
"""

import json
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from killed import after, at_change, count_changes, digests, in_child, shown

from converters.job.column_job import ColumnJob
from converters.job.column_parts import Part
from converters.job.columns import claimed, clear_up, joined, remove_column
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import Manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import TokenOrigin
from pipeline.vggt.encoder_spec import EncoderSpec, tiny

_NUM_RANDOM = 10
_KEY = "observation/t"


def main(dataset: pathlib.Path, out: pathlib.Path) -> None:
    shutil.copytree(dataset, out / "0")
    steps = {"add": lambda: add(out / "0", seed=0)}
    steps["replace"] = lambda: add(out / "0", seed=1)
    steps["parts"] = lambda: add_in_parts(out / "0", seed=2)
    steps["remove"] = lambda: remove_column(epath.Path(out / "0"), "t")
    result: dict[str, dict[str, int]] = {}
    for name, step in steps.items():
        result[name] = survives(step, out)
    assert shown(digests(out / "0")) == digests(dataset)
    sys.stdout.write(json.dumps(result) + "\n")


def survives(step: Callable[[], object], out: pathlib.Path) -> dict[str, int]:
    """Kills a step at every change and at random moments; leaves `out/0` after it, undisturbed."""
    directory = out / "0"
    shutil.copytree(directory, out / "before")
    before = shown(digests(directory))
    read_all(directory)  # what this process loads for it, it loads here and not in some children
    in_child(step)
    undisturbed = digests(directory)
    renew(out)
    started = time.monotonic()
    changes = count_changes(step)
    seconds = time.monotonic() - started
    rng = random.Random(0)
    killed = {"changes": len(changes), "at_change": 0, "at_random": 0}
    moments = [("at_change", at_change(n)) for n in changes]
    for kind, moment in moments:
        killed[kind] += _survives(step, out, moment, (before, undisturbed))
    while killed["at_random"] < _NUM_RANDOM:
        moment = after(rng.uniform(0, seconds))
        killed["at_random"] += _survives(step, out, moment, (before, undisturbed))
    shutil.rmtree(out / "before")
    return killed


def renew(out: pathlib.Path) -> None:
    shutil.rmtree(out / "0")
    shutil.copytree(out / "before", out / "0")


def _survives(
    step: Callable[[], object],
    out: pathlib.Path,
    disturb: Callable[[], None],
    states: tuple[dict[str, str], dict[str, str]],
) -> int:
    """1 where the kill came before the end; in any case a rerun gives the undisturbed files."""
    before, undisturbed = states
    directory = out / "0"
    renew(out)
    status = in_child(step, disturb)
    is_done = digests(directory)["dataset.json"] == undisturbed["dataset.json"]
    if not is_done and digests(directory)["dataset.json"] != before["dataset.json"]:
        raise AssertionError("a dataset.json that is neither the old nor the new one")
    read_all(directory)  # it stays a dataset all along
    if status == -signal.SIGKILL:
        in_child(lambda: again(step, directory))
    found = shown(digests(directory))
    if found != undisturbed:
        differing = dict(found.items() ^ undisturbed.items())
        raise AssertionError(f"the rerun gave other files: {sorted(differing)}")
    return status == -signal.SIGKILL


def again(step: Callable[[], object], directory: pathlib.Path) -> None:
    """The same command again; a column that went away whole has nothing left to remove."""
    try:
        step()
    except Exception as error:
        if "found no such column" not in str(error):
            raise


def read_all(directory: pathlib.Path) -> None:
    """Reads every record of every column that the dataset has."""
    dataset = open_dataset(str(directory))
    for reader in dataset.columns.values():
        for index in range(len(reader)):
            reader.read(index)
        reader.close()


def add(directory: pathlib.Path, *, seed: int) -> None:
    """Adds numbers as tokens, in the place of those of another seed."""
    with claimed(epath.Path(directory)) as manifest:
        job, origin = column(directory, manifest, seed)
        if job.is_published():
            clear_up(epath.Path(directory), "t")
            return
        job.begin(overwrite=True)
        for number in job.pending():
            job.write(number, values(job.steps[number], seed))
        job.finish("none", {_KEY: origin})


def add_in_parts(directory: pathlib.Path, *, seed: int) -> None:
    """The same by two parts, one after the other, and the step that finishes them."""
    for part in (Part(1, 2), Part(2, 2)):
        with joined(epath.Path(directory)) as manifest:
            job, origin = column(directory, manifest, seed)
            if job.is_published():
                break
            with job.begun_part(part, overwrite=True) as numbers:
                job.note_measured({_KEY: origin})
                for number in job.pending(numbers):
                    job.write(number, values(job.steps[number], seed))
    with claimed(epath.Path(directory)) as manifest:
        job, origin = column(directory, manifest, seed)
        if job.is_published():
            clear_up(epath.Path(directory), "t")
            return
        assert job.pending() == []
        job.finish("none", job.measured() or {})


def column(directory: pathlib.Path, manifest: Manifest, seed: int) -> tuple[ColumnJob, TokenOrigin]:
    """(the column of a seed, the origin of its feature)."""
    spec = EncoderSpec("none", str(seed), "none", model=tiny(), layers=(1,), image_size=(56, 56))
    origin = TokenOrigin(spec, "image_primary", "all", "f16", 0.0)
    added = Column("t", "step", (origin.feature(_KEY),))
    reads = frozenset({"steps"})
    return ColumnJob(epath.Path(directory), manifest, added, {"seed": seed}, reads), origin


def values(steps: range, seed: int) -> Iterator[dict[str, np.ndarray]]:
    for step in steps:
        yield {_KEY: np.full((21, 64), step + 1000 * seed, np.float16)}


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
