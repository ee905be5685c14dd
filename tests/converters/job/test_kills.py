"""The job as a whole: any runner, any kill and any rerun give the same bytes, one job at a time."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.job.convert import LocalRunner, convert
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping, registered
from converters.sources.open_source import open_source
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, UserError
from tests.file_checksums import contents
from tests.processes import PATIENCE_S, Command

ROOT = Path(__file__).parents[3]
KILLED = Path(__file__).with_name("killed.py")


def start(*arguments: object) -> Command:
    return Command("converters.rlds", *arguments)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def long_source(mini_rlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled set's two files over and over, as links: 16 shards."""
    directory = tmp_path_factory.mktemp("long") / "1.0.0"
    directory.mkdir()
    shutil.copy(mini_rlds / "features.json", directory)
    info = json.loads((mini_rlds / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2"] * 16
    (directory / "dataset_info.json").write_text(json.dumps(info))
    for i in range(16):
        name = f"libero_mini-train.tfrecord-{i:05d}-of-00016"
        bundled = f"libero_mini-train.tfrecord-{i % 2:05d}-of-00002"
        (directory / name).symlink_to(mini_rlds / bundled)
    return directory


@pytest.fixture(scope="module")
def undisturbed(long_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed")
    convert(open_source(str(long_source)), out, registered("libero"))
    digests = contents(out)
    shutil.rmtree(out)
    return digests


# --- runners


@pytest.mark.parametrize("num_workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_writes_the_same_bytes(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path, num_workers: int
) -> None:
    reported: list[tuple[int, int]] = []
    convert(
        open_source(str(long_source)),
        tmp_path,
        registered("libero"),
        runner=LocalRunner(num_workers),
        on_progress=lambda num_episodes, num_bytes: reported.append((num_episodes, num_bytes)),
    )
    assert contents(tmp_path) == undisturbed
    num_bytes = sum(path.stat().st_size for path in long_source.glob("*tfrecord*"))
    framing = 32 * 16  # 16 bytes per record, two records in each of 16 files
    assert [sum(column) for column in zip(*reported, strict=True)] == [32, num_bytes - framing]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="one process"),
        pytest.param(
            ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
            id="two processes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_beam_writes_the_same_bytes(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path, flags: list[str]
) -> None:
    job = start(long_source, tmp_path / "out", "--runner", "beam", "--", *flags)
    assert "\n32 episodes, 3,640 steps, 2 tasks" in job.finish().stdout
    assert contents(tmp_path / "out") == undisturbed


def test_a_mistake_in_the_source_is_one_line_from_any_runner(toy: Any, tmp_path: Path) -> None:
    source = toy.write(tmp_path)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(describe(open_source(str(source))))
    shard = source / "toy-train.tfrecord-00001-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    expected = f"error: {shard}, record 1: expected "
    for flags in (["--workers", "1"], ["--workers", "2"], ["--runner", "beam"]):
        job = start(source, tmp_path / "out", "--mapping", mapping, *flags)
        errors = job.finish(2).stderr
        lines = [line for line in errors.splitlines() if not line.startswith(("INFO", "WARNING"))]
        # The mapping, which ends in an empty line, and nothing after it.
        assert re.fullmatch(r"(.+\n)+\n", job.stdout), flags
        assert [line[: len(expected)] for line in lines] == [expected], flags
    shard.write_bytes(whole)
    job = start(source, tmp_path / "out", "--mapping", mapping)
    assert "\n4 episodes" in job.finish().stdout
    convert(open_source(str(source)), tmp_path / "fresh", read_mapping(mapping))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "at least 1 with --workers; found 0"),
        (["--workers", "2", "--runner", "beam"], "a flag of Beam's own runner after --; found --w"),
        (["--", "--project=x"], "no flags after -- with --runner local; found --project=x"),
        (["--episodes", "3"], "a range A:B of whole numbers, such as 0:100; found 3"),
        (["--episodes", "30:33"], "a range A:B of episodes with 0 <= A < B <= 32; found 30:33"),
    ],
)
def test_flags_that_contradict_are_explained(
    long_source: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    job = start(long_source, tmp_path / "out", *flags)
    assert message in job.finish(2).stderr
    assert job.stdout == ""
    assert not (tmp_path / "out").exists()


# --- memory


_PEAK = """
import pathlib, runpy
runpy.run_module("converters.rlds", run_name="__main__")
(line,) = (s for s in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
print(line)
"""


def _peak_bytes(source: Path, out: Path, mapping: Path) -> int:
    arguments = [source, out, "--mapping", mapping, "--workers", "1"]
    command = [sys.executable, "-c", _PEAK, *map(str, arguments)]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return int(output.split()[-2]) * 1024


@pytest.mark.slow
def test_memory_is_three_records_and_does_not_grow_with_the_episodes(
    toy: Any, tmp_path: Path
) -> None:
    tokens = np.random.default_rng(0).normal(size=(3, 2_000_000)).astype(np.float32)
    toy = toy.having("steps/tokens", tfds.features.Tensor(shape=(2_000_000,), dtype=np.float16), [])
    toy = dataclasses.replace(toy, episodes=toy.episodes[:2]).holding("steps/tokens", tokens)
    few = toy.write(tmp_path)
    many = tmp_path / "many"
    many.mkdir()
    shutil.copy(few / "features.json", many)
    info = json.loads((few / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["2"] * 10
    (many / "dataset_info.json").write_text(json.dumps(info))
    (shard,) = few.glob("*tfrecord*")
    for i in range(10):
        (many / f"toy-train.tfrecord-{i:05d}-of-00010").symlink_to(shard)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(describe(open_source(str(few))))
    record_bytes = shard.stat().st_size // 2
    peaks = [
        _peak_bytes(source, tmp_path / f"out_{source.name}", mapping) for source in (few, many)
    ]
    assert record_bytes > 24_000_000
    assert max(peaks) < 250_000_000 + 3 * record_bytes
    assert peaks[1] - peaks[0] < record_bytes / 2


# --- kills


@pytest.mark.slow
def test_95_kills_each_followed_by_a_rerun_end_in_the_same_digests(
    toy: Any, tmp_path: Path
) -> None:
    """Before every change of a file, those of the manifest included, and at 30 random moments."""
    source = toy.write(tmp_path)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(describe(open_source(str(source))))
    result = subprocess.run(
        [sys.executable, KILLED, source, mapping, tmp_path / "out"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert counts["killed_at_change"] == counts["changes"] >= 60
    assert counts["killed_at_random"] == 30


@pytest.mark.parametrize(
    ("num_workers", "num_shards"),
    [
        (1, 5),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(2, 5, marks=pytest.mark.slow),
    ],
)
def test_a_killed_command_leaves_nothing_that_opens_and_a_rerun_resumes(
    long_source: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    num_workers: int,
    num_shards: int,
) -> None:
    out = tmp_path / "out"
    parts = out / ".conversion"
    job = start(long_source, out, "--workers", num_workers)
    wait_for(
        lambda: (
            list(out.glob("steps/*")) and len(list(parts.glob("[0-9]*.part.json"))) >= num_shards
        )
    )
    job.kill()
    assert job.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="found an unfinished conversion"):
        open_dataset(str(out))
    time.sleep(0.2)  # its workers die with it
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.part.json")}
    assert len(done) >= num_shards
    written: dict[str, int] = {}

    def look(num_episodes: int, num_bytes: int) -> None:
        written.update(
            {path.name: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.part.json")}
        )

    convert(open_source(str(long_source)), out, registered("libero"), on_progress=look)
    assert contents(out) == undisturbed
    assert {name: written[name] for name in done} == done


def _workers_of(job: Command) -> list[int]:
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    spawned = [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return [pid for pid in spawned if b"resource_tracker" not in _command(pid)]


def _command(pid: int) -> bytes:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def test_workers_die_with_a_killed_job(long_source: Path, tmp_path: Path) -> None:
    job = start(long_source, tmp_path / "out", "--workers", 2)
    wait_for(lambda: list(tmp_path.glob("out/steps/*")))
    workers = _workers_of(job)
    assert len(workers) == 2
    job.kill()
    wait_for(lambda: not any(map(_command, workers)))


def test_a_killed_worker_ends_the_job_with_a_remedy(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    job = start(long_source, tmp_path / "out", "--workers", 2)
    wait_for(lambda: list(tmp_path.glob("out/steps/*")))
    os.kill(_workers_of(job)[0], signal.SIGKILL)
    errors = job.finish(2).stderr
    assert "episodes" not in job.stdout  # no summary
    assert errors.splitlines() == [
        "error: a worker process: expected to live until its shard is done; found it was killed, "
        "perhaps for want of memory. Run the same command again with fewer --workers: it resumes "
        "from here."
    ]
    convert(open_source(str(long_source)), tmp_path / "out", registered("libero"))
    assert contents(tmp_path / "out") == undisturbed


def test_an_interrupted_job_stops_its_workers_and_says_so(
    long_source: Path, tmp_path: Path
) -> None:
    job = start(long_source, tmp_path / "out", "--workers", 2)
    wait_for(lambda: list(tmp_path.glob("out/steps/*")))
    workers = _workers_of(job)
    job.send_signal(signal.SIGINT)
    line = "interrupted; run the same command again to resume\n"
    assert job.finish(130).stderr == line
    assert "episodes" not in job.stdout  # no summary
    wait_for(lambda: not any(map(_command, workers)))


# --- one job at a time, and one plan


def test_the_second_of_two_jobs_refuses(toy: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".conversion").mkdir(parents=True)
    with (out / ".conversion" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="found another conversion at work in it"):
                convert(toy.open(tmp_path / str(overwrite)), out, toy.mapping, overwrite=overwrite)
    convert(toy.open(tmp_path / "third"), out, toy.mapping)
    assert open_dataset(str(out)).num_episodes == 4


def test_two_commands_at_once_end_in_one_dataset(
    long_source: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = start(long_source, out)
    wait_for(lambda: list(out.glob("steps/*")))
    second = start(long_source, out).finish(2)
    assert second.stderr.startswith(f"error: {out}: expected an empty or new directory; ")
    first.finish()
    assert contents(out) == undisturbed


@pytest.fixture
def unfinished(toy: Any, tmp_path: Path) -> Path:
    """A conversion of the toy whose second shard could not be read."""
    source = toy.open(tmp_path)
    corrupt_shard = source.shards[1].paths[0]
    whole = corrupt_shard.read_bytes()
    corrupt_shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"tfrecord-00001-of-00002, record 1: expected"):
        convert(source, tmp_path / "out", toy.mapping)
    corrupt_shard.write_bytes(whole)
    return tmp_path / "out"


def test_an_unfinished_conversion_of_another_plan_is_not_continued(
    toy: Any, unfinished: Path, tmp_path: Path
) -> None:
    other = open_source(str(tmp_path / "toy")).select(0, 3)
    message = "an unfinished conversion with other shards or episodes of it.*start over with"
    with pytest.raises(UserError, match=message):
        convert(other, unfinished, toy.mapping)
    plan = unfinished / ".conversion" / "plan.json"
    noted = json.loads(plan.read_text())
    for changed, difference in (
        ({**noted, "jpeg_quality": "80"}, "another --image_quality"),
        ({**noted, "step_ranges": "1f"}, "other step ranges"),
        ({**noted, "computation": {}}, "other computations in the mapping"),
        ([1], "a plan that is corrupt"),
    ):
        plan.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=f"an unfinished conversion with {difference}"):
            convert(open_source(str(tmp_path / "toy")), unfinished, toy.mapping)
    convert(other, unfinished, toy.mapping, overwrite=True)
    convert(other, tmp_path / "fresh", toy.mapping)
    assert contents(unfinished) == contents(tmp_path / "fresh")


def test_an_unfinished_conversion_is_found_behind_any_name(
    toy: Any, unfinished: Path, tmp_path: Path
) -> None:
    unfinished.rename(tmp_path / "out[1]*")
    other = open_source(str(tmp_path / "toy")).select(0, 3)
    with pytest.raises(UserError, match="an unfinished conversion with other shards"):
        convert(other, tmp_path / "out[1]*", toy.mapping)


def test_a_corrupt_plan_is_not_continued(toy: Any, unfinished: Path, tmp_path: Path) -> None:
    (unfinished / ".conversion" / "plan.json").write_text("{")
    source = open_source(str(tmp_path / "toy"))
    with pytest.raises(UserError, match=r"with a plan that is corrupt\. .* with --overwrite"):
        convert(source, unfinished, toy.mapping)


def test_an_unfinished_conversion_without_a_shard_is_replaced(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    path = source.shards[0].paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="00000-of-00002, record 1: expected"):
        convert(source, tmp_path / "out", toy.mapping)
    path.write_bytes(whole)
    convert(source.select(2, 4), tmp_path / "out", toy.mapping)
    assert open_dataset(str(tmp_path / "out")).manifest.provenance["episodes"] == "2:4 of 4"


def test_a_rerun_converts_only_what_is_missing(toy: Any, unfinished: Path, tmp_path: Path) -> None:
    before = (unfinished / "steps" / "00000-of-00002.arrayrecord").stat().st_mtime_ns
    reported: list[tuple[int, int]] = []
    convert(
        open_source(str(tmp_path / "toy")),
        unfinished,
        toy.mapping,
        on_progress=lambda num_episodes, num_bytes: reported.append((num_episodes, num_bytes)),
    )
    assert [num_episodes for num_episodes, _ in reported] == [2, 1, 1]
    assert reported[0] == (2, 0)
    after = (unfinished / "steps" / "00000-of-00002.arrayrecord").stat().st_mtime_ns
    assert after == before


def test_a_finished_shard_that_went_missing_or_was_cut_is_converted_again(
    toy: Any, unfinished: Path, tmp_path: Path
) -> None:
    source = open_source(str(tmp_path / "toy"))
    convert(source, tmp_path / "fresh", toy.mapping)
    (unfinished / "steps" / "00000-of-00002.arrayrecord").unlink()
    convert(source, unfinished, toy.mapping)
    assert contents(unfinished) == contents(tmp_path / "fresh")


def test_a_shard_of_another_plan_is_not_taken_for_done(
    toy: Any, unfinished: Path, tmp_path: Path
) -> None:
    """A late worker of a killed job leaves such a file."""
    part = unfinished / ".conversion" / "00000.part.json"
    content = json.loads(part.read_text())
    part.write_text(json.dumps(content | {"plan": "0" * 16}))
    source = open_source(str(tmp_path / "toy"))
    reported: list[int] = []
    convert(
        source,
        unfinished,
        toy.mapping,
        on_progress=lambda num_episodes, num_bytes: reported.append(num_episodes),
    )
    assert reported == [0, 1, 1, 1, 1]


def test_a_failed_job_leaves_no_temporaries(toy: Any, tmp_path: Path) -> None:
    source = toy.write(tmp_path)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(describe(open_source(str(source))))
    (source / "toy-train.tfrecord-00001-of-00002").write_bytes(b"junk")
    for num_workers in (1, 2):
        job = start(source, tmp_path / "out", "--mapping", mapping, "--workers", num_workers)
        assert job.wait().stderr.startswith("error: ")
        assert not list(tmp_path.glob("out/**/.*.tmp"))


def test_a_destination_inside_the_source_is_refused(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    inside = Path(source.directory) / "out"
    with pytest.raises(UserError, match="out: expected a destination outside the source; found on"):
        convert(source, inside, toy.mapping)
    assert not inside.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gs://bucket/set", "out"], "error: gs://bucket/set: expected a path on a disk, or of an"),
        (["foo://bucket/set", "out"], "error: foo://bucket/set: expected a path on a disk, or of"),
    ],
)
def test_a_store_without_its_client_is_one_line(arguments: list[str], message: str) -> None:
    job = start(*arguments)
    errors = job.finish(2).stderr
    assert (job.stdout, errors.count("\n")) == ("", 1)
    assert errors.startswith(message)


def test_a_runner_that_beam_does_not_have_is_one_line(long_source: Path, tmp_path: Path) -> None:
    job = start(long_source, tmp_path / "out", "--runner", "beam", "--", "--runner=NoSuchRunner")
    last = job.finish(2).stderr.splitlines()[-1]
    assert last.startswith("error: Apache Beam: expected the pipeline to run to its end; found Val")
