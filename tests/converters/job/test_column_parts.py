"""Several parts of one column at work: they keep apart, and what they leave is that of one job."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath

from converters import edit
from converters.job import columns
from converters.job.column_job import ColumnJob
from converters.job.column_parts import Part, shares
from converters.job.columns import claimed, joined, remove_column
from converters.job.convert import convert
from converters.sources.open_source import open_source
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import UserError
from pipeline.vggt.encoder_spec import EncoderSpec, tiny
from tests.converters.conftest import FEATURES, Toy, episode
from tests.file_checksums import contents

SPEC = EncoderSpec("none", "d", "none", model=tiny(), layers=(1,), image_size=(28, 28))
ORIGIN = TokenOrigin(SPEC, "image_primary", "all", "f16", 0.25)
LENGTHS = (5, 4, 1, 2, 3, 3, 1, 1, 2, 2)
"""Steps of the episodes: shards of 9, 3, 6, 2 and 4 steps."""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A dataset of five shards per column."""
    episodes = tuple(episode(seed, length) for seed, length in enumerate(LENGTHS))
    folder = tmp_path_factory.mktemp("parts")
    toy = Toy(FEATURES, episodes)
    convert(toy.open(folder / "source"), folder / "out", toy.mapping)
    return folder / "out"


@pytest.fixture
def out(converted: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(converted, tmp_path / "out"))


def job_of(out: pathlib.Path, name: str = "t", **settings: object) -> ColumnJob:
    directory, key = epath.Path(out), f"observation/{name}"
    column = Column(name, "step", (ORIGIN.feature(key),))
    return ColumnJob(directory, load_manifest(directory), column, settings, frozenset({"steps"}))


def records(job: ColumnJob, number: int) -> Iterator[dict[str, np.ndarray]]:
    (feature,) = job.column.features
    for step in job.steps[number]:
        yield {feature.key: np.full(feature.shape, step, np.float16)}


@contextlib.contextmanager
def at_work(
    out: pathlib.Path, part: str, *, name: str = "t", overwrite: bool = False, **settings: object
) -> Iterator[tuple[ColumnJob, list[int]]]:
    """A part that has begun, and its shards."""
    with joined(epath.Path(out)):
        job = job_of(out, name, **settings)
        with job.begun_part(Part.parse(part), overwrite=overwrite) as numbers:
            yield job, numbers


def write(job: ColumnJob, numbers: list[int]) -> None:
    for number in job.pending(numbers):
        job.write(number, records(job, number))


def compute(out: pathlib.Path, part: str, **named: Any) -> None:
    with at_work(out, part, **named) as (job, numbers):
        write(job, numbers)


def finish(out: pathlib.Path) -> None:
    with claimed(epath.Path(out)):
        job = job_of(out)
        assert job.pending() == []
        job.finish("MIT", {"observation/t": ORIGIN})


@pytest.fixture(scope="module")
def whole(converted: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one job leaves that computes the whole column."""
    out = pathlib.Path(shutil.copytree(converted, tmp_path_factory.mktemp("whole") / "out"))
    with claimed(epath.Path(out)):
        job = job_of(out)
        job.begin(overwrite=False)
        write(job, job.pending())
        job.finish("MIT", {"observation/t": ORIGIN})
    return contents(out)


# --- which shards


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"),
    [
        ((9, 3, 6, 2, 4), 1, [[0, 1, 2, 3, 4]]),
        ((9, 3, 6, 2, 4), 2, [[0, 1], [2, 3, 4]]),
        ((9, 3, 6, 2, 4), 3, [[0], [2, 3], [1, 4]]),
        ((5, 5, 5, 5), 3, [[0, 3], [1], [2]]),
        ((5, 5), 4, [[0], [1]]),
        ((0, 0, 0), 2, [[0, 2], [1]]),
    ],
)
def test_shards_are_shared_by_their_steps(
    num_steps: tuple[int, ...], count: int, expected: list[list[int]]
) -> None:
    assert shares(num_steps, count) == expected
    parts = [Part(number, count) for number in range(1, count + 1)]
    assert [part.shards(num_steps) for part in parts][: len(expected)] == expected
    assert not any(part.shards(num_steps) for part in parts[len(expected) :])


def test_no_part_has_much_more_than_its_share() -> None:
    num_steps = tuple(np.random.default_rng(0).integers(1, 1000, 400).tolist())
    for count in (2, 7, 64):
        found = shares(num_steps, count)
        assert sorted(shard for part in found for shard in part) == list(range(400))
        most = max(sum(num_steps[shard] for shard in part) for part in found)
        assert most <= 1.02 * sum(num_steps) / count


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "0/0", "1", "/", "1/x", "-1/3", "1/3/3", "1/1000000"]
)
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"a part must be .*, not {text}"):
        Part.parse(text)


# --- what they leave


def test_parts_at_the_same_time_leave_the_bytes_of_one_job(
    out: pathlib.Path, whole: dict[str, str]
) -> None:
    """Each of them is at work before any other one ends."""
    barrier = threading.Barrier(3)

    def run(part: str) -> None:
        with at_work(out, part) as (job, numbers):
            barrier.wait(60)
            write(job, numbers)

    threads = [threading.Thread(target=run, args=(f"{n}/3",)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not load_manifest(epath.Path(out)).encoders
    assert open_dataset(str(out)).num_steps == 24
    finish(out)
    assert contents(out) == whole


class KilledError(Exception):
    """Stands for a kill."""


def interrupt(out: pathlib.Path, part: str, **named: Any) -> pathlib.Path:
    """A part that ends while it writes its first shard; the file that it was writing."""
    with contextlib.suppress(KilledError), at_work(out, part, **named) as (job, numbers):
        path = pathlib.Path(job.directory / job.file(numbers[0]))
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_name(f".{path.name}.0123abcd.7.tmp")
        unfinished.write_bytes(b"half")
        raise KilledError
    return unfinished


def test_another_number_of_parts_continues_with_the_shards_that_are_left(
    out: pathlib.Path, whole: dict[str, str]
) -> None:
    compute(out, "1/3")
    lost = interrupt(out, "2/3")
    written = {path: path.stat().st_mtime_ns for path in (out / "t").glob("*.arrayrecord")}
    assert len(written) == 1
    compute(out, "1/2")
    assert lost.exists()
    compute(out, "2/2")
    assert not lost.exists()
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not list((out / ".conversion").glob("*-of-3.lock"))
    finish(out)
    assert contents(out) == whole


def test_a_part_deletes_only_what_itself_was_writing(out: pathlib.Path) -> None:
    lost = [interrupt(out, part) for part in ("1/3", "2/3")]
    mark = out / ".conversion" / ".t.00002.column-part.json.0123abcd.7.tmp"
    mark.write_text("half")
    compute(out, "1/3")
    assert [path.exists() for path in (*lost, mark)] == [False, True, True]
    compute(out, "2/3")
    assert not mark.exists()


def test_one_job_computes_what_parts_have_left(out: pathlib.Path, whole: dict[str, str]) -> None:
    compute(out, "2/3")
    interrupt(out, "1/3")
    with claimed(epath.Path(out)):
        job = job_of(out)
        assert job.pending() == [0, 1, 4]
        job.begin(overwrite=False)
        write(job, job.pending())
        job.finish("MIT", {"observation/t": ORIGIN})
    assert contents(out) == whole


def test_what_parts_have_left_is_removed_by_the_name_of_the_column(out: pathlib.Path) -> None:
    before = contents(out)
    compute(out, "2/3")
    interrupt(out, "1/3")
    assert remove_column(epath.Path(out), "t") > 0
    assert contents(out) == before
    assert not (out / ".conversion").exists()


# --- who may be at work


@pytest.mark.parametrize(
    ("part", "named", "message"),
    [
        ("2/3", {}, "expected a part that is not at work yet; found at work: part 2/3 of column t"),
        (
            "1/2",
            {},
            "expected no parts at work but those of 2 of column t; found at work: part 2/3",
        ),
        ("1/3", {"name": "u"}, "but those of 3 of column u; found at work: part 2/3 of column t ("),
        ("1/3", {"store": "int8"}, "found one with --store none, not int8. Finish that one"),
        (
            "1/3",
            {"store": "int8", "overwrite": True},
            "expected no part at work, as this one starts over; found at work: part 2/3 of column",
        ),
    ],
)
def test_a_part_that_would_disturb_another_one_is_refused(
    out: pathlib.Path, part: str, named: dict[str, Any], message: str
) -> None:
    with at_work(out, "2/3") as (job, numbers):
        with pytest.raises(UserError, match=re.escape(message)):
            compute(out, part, **named)
        write(job, numbers)
    compute(out, part, **{"overwrite": True, **named})


def test_an_error_says_where_a_part_is_at_work(out: pathlib.Path) -> None:
    where = re.escape(f"({os.uname().nodename}, process {os.getpid()})")
    with at_work(out, "2/3"), pytest.raises(UserError, match=where):
        compute(out, "2/3")


def test_other_jobs_are_refused_while_parts_are_at_work(
    out: pathlib.Path, converted: pathlib.Path
) -> None:
    source = open_source(str(converted.parent / "source" / "toy"))
    directory = epath.Path(out)
    message = (
        r"expected a dataset that no other job is changing; found at work: part 1/3 of column t "
        r"\(.*\), part 3/3 of column t \(.*\)\. Wait for its end, or stop it"
    )
    with at_work(out, "1/3"), at_work(out, "3/3"):
        for other in (
            lambda: finish(out),
            lambda: remove_column(directory, "t"),
            lambda: edit.edit(edit.Args(str(out), set=("licences.steps=MIT",))),
        ):
            with pytest.raises(UserError, match=message):
                other()
        with pytest.raises(UserError, match="found another conversion at work in it"):
            convert(source, out, Toy(FEATURES, ()).mapping, overwrite=True)
    edit.edit(edit.Args(str(out), set=("licences.steps=MIT",)))
    compute(out, "3/3")


def test_a_part_waits_for_the_moment_in_which_another_one_ends(out: pathlib.Path) -> None:
    part = threading.Thread(target=compute, args=(out, "1/3"))
    # The folder of the lock is removed meanwhile, as by a part that had nothing to do.
    with claimed(epath.Path(out)):
        part.start()
        time.sleep(0.1)
    part.join(20)
    assert job_of(out).pending(Part(1, 3).shards(job_of(out).num_steps)) == []


def test_a_part_is_refused_while_another_job_is_at_work(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_MOMENT_S", 0.0)
    before = contents(out)
    with (
        claimed(epath.Path(out)),
        pytest.raises(UserError, match="found another conversion at work in it"),
    ):
        compute(out, "1/3")
    assert contents(out) == before
    assert not (out / ".conversion").exists()


def test_a_part_that_is_refused_leaves_nothing(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out)
    job = job_of(out)
    needed = sum(job.shard_bytes(number) for number in Part(2, 3).shards(job.num_steps))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"expected 0\.3 MB free on the disk, for what is to be wr"):
        compute(out, "2/3")
    assert not (out / ".conversion").exists()
    # It needs room for its own shards alone.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    compute(out, "2/3")


def test_a_file_system_without_locks_is_reported(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(columns, "_MOMENT_S", 0.0)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    message = r"\.conversion/lock: expected a file system that can lock files; found No locks avai"
    with pytest.raises(UserError, match=message):
        compute(out, "1/3")
