"""A column of tokens computed in parts: the bytes of one job, whatever happens to the parts."""

import concurrent.futures
import functools
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import pytest
import tensorflow_datasets as tfds
from etils import epath

from converters import edit
from converters.job.column_parts import Part
from converters.job.convert import convert
from converters.vggt import __main__ as command, token_job
from converters.vggt.token_job import TokenJob, TokenSettings, add_tokens
from converters.vggt.token_parts import PartOutcome, add_part, finish_tokens
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.errors import UserError
from pipeline.vggt import encoder
from tests.converters.conftest import FEATURES, Toy, episode, jpeg
from tests.converters.kill_moments import kill_after_first_shard
from tests.file_checksums import contents
from tests.processes import Command

SIZE = 128
"""Pixels of an image, as in the bundled set: the program that encodes them is the same."""
LENGTHS = (5, 4, 1, 2, 3, 3, 1, 1, 2, 2)
"""Steps of the episodes: shards of 9, 3, 6, 2 and 4 steps."""
TINY = ("--weights", "random:tiny", "--size", "56", "--name", "t", "--batch_size", "16")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A dataset of five shards per column."""
    image = tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg")
    episodes = [episode(seed, length) for seed, length in enumerate(LENGTHS)]
    for seed, values in enumerate(episodes):
        images = [jpeg(100 * seed + step, SIZE) for step in range(LENGTHS[seed])]
        values["steps/observation/image"] = images
    toy = Toy({**FEATURES, "steps/observation/image": image}, tuple(episodes))
    folder = tmp_path_factory.mktemp("parts")
    convert(toy.open(folder / "source"), folder / "out", toy.mapping)
    return folder / "out"


@pytest.fixture
def out(converted: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(converted, tmp_path / "out"))


@pytest.fixture(scope="module", autouse=True)
def _shared_weights() -> Iterator[None]:
    """Jobs share their random weights and, beyond the eight that are kept, the programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_job, "load_weights", functools.cache(token_job.load_weights))
        program = encoder._program.__wrapped__
        patch.setattr(encoder, "_program", functools.cache(program))
        yield


def settings_of(**settings: Any) -> TokenSettings:
    return TokenSettings(**({"name": "t", "image_size": (56, 56)} | settings))


def make_job(directory: pathlib.Path, **settings: Any) -> TokenJob:
    dataset = open_dataset(str(directory))
    return TokenJob.load(dataset, settings_of(**settings), "random:tiny", 16)


def compute(out: pathlib.Path, part: str, **settings: Any) -> PartOutcome:
    outcome = add_part(make_job(out, **settings), Part.parse(part))
    assert outcome is not None
    return outcome


def finish(out: pathlib.Path, **settings: Any) -> Manifest:
    asked = (settings_of(**settings), "random:tiny") if settings else None
    return finish_tokens(epath.Path(out), "t", asked)


@pytest.fixture(scope="module")
def whole(converted: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one job leaves that computes the whole column."""
    out = pathlib.Path(shutil.copytree(converted, tmp_path_factory.mktemp("whole") / "out"))
    add_tokens(make_job(out))
    return contents(out)


class KilledError(Exception):
    """Stands for a kill."""


def test_parts_that_are_killed_at_the_same_time_leave_the_bytes_of_one_job(
    out: pathlib.Path, whole: dict[str, str]
) -> None:
    """Each part is killed at another moment, and run again."""

    def run(part: str, most: int) -> None:
        frames = 0

        def count(num_frames: int, num_bytes: int) -> None:
            nonlocal frames
            frames += num_frames
            if frames > most:
                raise KilledError

        with pytest.raises(KilledError):
            add_part(make_job(out), Part.parse(part), on_progress=count)
        compute(out, part)

    # Shards 0, then 2 and 3, then 1 and 4: nothing, one of two, and all but the last are written.
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(run, ("1/3", "2/3", "3/3"), (0, 6, 3)))
    assert not load_manifest(epath.Path(out)).encoders
    manifest = finish(out)
    assert 1e-4 < manifest.encoders["observation/t"].storage_error < 3e-4
    assert contents(out) == whole


def test_a_part_reports_what_is_left(out: pathlib.Path) -> None:
    assert compute(out, "3/3") == PartOutcome(
        num_parts=3,
        num_shards=2,
        num_bytes=sum(path.stat().st_size for path in (out / "t").iterdir()),
        total=5,
        left={Part(1, 3): [0], Part(2, 3): [2, 3]},
        working=set(),
    )
    seen: list[PartOutcome] = []

    def run_another(num_frames: int, num_bytes: int) -> None:
        if num_bytes and not seen:
            seen.append(compute(out, "2/3"))

    last = add_part(make_job(out), Part(1, 3), on_progress=run_another)
    assert (seen[0].left, seen[0].working) == ({Part(1, 3): [0]}, {Part(1, 3)})
    assert last is not None
    assert (last.left, last.working) == ({}, set())


def test_a_sample_is_measured_by_the_first_part_alone(
    out: pathlib.Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(out, "1/2")
    monkeypatch.delattr(token_job, "measure")
    compute(out, "2/2")
    monkeypatch.delattr(TokenJob, "encoder")
    # Not even by one job that finishes what the parts have done.
    add_tokens(make_job(out))
    assert contents(out) == whole


def test_an_edit_between_parts_stays(out: pathlib.Path) -> None:
    compute(out, "1/2")
    edit.edit(edit.Args(str(out), set=("licences.steps=MIT",), exclude="3"))
    with pytest.raises(UserError, match="expected no unfinished column, which could not be resu"):
        edit.edit(edit.Args(str(out), instruction=(("lift the cup", "lift it"),)))
    compute(out, "2/2")
    manifest = finish(out)
    assert manifest.excluded_episodes == (3,)
    assert manifest.licences["t"] == "none: random numbers (weights); MIT (images)"


def test_an_unfinished_column_of_other_settings_gives_way_to_parts(
    out: pathlib.Path, whole: dict[str, str]
) -> None:
    compute(out, "1/2", store="int8")
    message = r"found one with --store int8, not f16\. .* start over with --o"
    with pytest.raises(UserError, match=message):
        compute(out, "2/2")
    for number in (2, 1):
        add_part(make_job(out), Part(number, 2), overwrite=True)
    finish(out)
    assert contents(out) == whole


def test_a_computed_column_is_replaced_by_parts(out: pathlib.Path, whole: dict[str, str]) -> None:
    add_tokens(make_job(out, store="int8"))
    with pytest.raises(UserError, match="expected a new column; found one that was computed befo"):
        compute(out, "1/1")
    add_part(make_job(out), Part(1, 1), overwrite=True)
    assert load_manifest(epath.Path(out)).encoders["observation/t"].store == "int8"
    finish(out)
    assert contents(out) == whole
    assert add_part(make_job(out), Part(1, 1), overwrite=True) is None
    assert contents(out) == whole


# --- the finishing step


def test_a_column_is_finished_once_all_parts_are_done(
    out: pathlib.Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = re.escape(f"{out}, column t: ")
    with pytest.raises(
        UserError, match=f"{where}expected an unfinished column of that name; found"
    ):
        finish(out)
    compute(out, "1/3")
    message = (
        r"expected all 5 shards; found 4 missing, by number 1-4\. Run these parts again: "
        r"--part 2/3, --part 3/3\. Or run the command that computes the column without --part"
    )
    with pytest.raises(UserError, match=where + message):
        finish(out)

    def too_early(num_frames: int, num_bytes: int) -> None:
        with pytest.raises(UserError, match=r"found at work: part 2/3 of column t \(.*\)\. Wait"):
            finish(out)

    add_part(make_job(out), Part(2, 3), on_progress=too_early)
    with pytest.raises(
        UserError, match=r"found 2 missing, by number 1,4\. .* again: --part 3/3\. Or run"
    ):
        finish(out)
    compute(out, "3/3")
    # The encoder and its weights are not needed.
    monkeypatch.setattr(token_job, "load_weights", None)
    first = finish(out)
    assert contents(out) == whole
    assert finish(out) == first
    assert contents(out) == whole


def test_a_finish_that_was_killed_is_finished(
    out: pathlib.Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(out, "1/1")
    monkeypatch.setattr("converters.job.column_job.clear_up", None)
    with pytest.raises(TypeError):
        finish(out)
    monkeypatch.undo()
    assert (out / ".conversion").exists()
    finish(out)
    assert contents(out) == whole


def test_a_finish_with_other_settings_is_refused(out: pathlib.Path) -> None:
    compute(out, "1/1")
    message = (
        r"column t: expected the settings of this command; found --store f16, not int8\. "
        r"Give --finish the settings of the parts, or --name alone"
    )
    for is_published in (False, True):
        with pytest.raises(UserError, match=message):
            finish(out, store="int8")
        assert ("t" in load_manifest(epath.Path(out)).shards) == is_published
        finish(out, store="f16")


# --- the command


@pytest.fixture
def run(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs the command in this process: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vggt", str(out), *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_summary_of_a_part_says_what_is_left_and_what_comes_next(
    out: pathlib.Path, run: Any
) -> None:
    assert re.sub(r"\d\.\d", "#", run(*TINY, "--part", "2/2")[1]) == (
        "t, part 2/2: 3 shards, # MB in # s\n"
        "left of the column: 2 of 5 shards\n"
        "  part 1/2: 2 shards, not at work\n"
        f"dataset: {out}\n"
    )
    done = "all 5 shards are done; add the column with: python -m converters.vggt"
    assert f"\n{done} {out} --name t --finish\n" in run(*TINY, "--part", "1/2")[1]
    assert run(*TINY, "--part", "7/9")[1] == (
        "t, part 7/9: nothing to do, the dataset has 5 shards for 9 parts\n"
        f"{done} {out} --name t --finish\n"
        f"dataset: {out}\n"
    )
    code, output, _ = run("--name", "t", "--finish")
    assert code == 0
    assert output.startswith("t: 0.7 MB in the dataset\n  observation/t ")
    assert run(*TINY, "--part", "1/2", "--overwrite")[1].startswith("t, part 1/2: nothing to do, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TINY, "--part", "4/3"], "expected --part I/N, with I from 1 to N, such as --part 2/3; "),
        ([*TINY, "--part", "0/0"], "found 0/0. See"),
        ([*TINY, "--part", "2"], "found 2. See"),
        (
            [*TINY, "--part", "1/2", "--finish"],
            "expected one of --report, --part, --finish, --remove; found ",
        ),
        ([*TINY, "--part", "1/2", "--report"], "found --report and --part. See"),
        (["--remove", "vggt_tokens", "--finish"], "found --finish and --remove. See"),
        (["--finish", "--store", "int8"], "found --store without --weights. See"),
        (
            ["--finish"],
            "column vggt_tokens: expected an unfinished column of that name; found none",
        ),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    out: pathlib.Path, run: Any, arguments: list[str], message: str
) -> None:
    before = contents(out)
    code, output, errors = run(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert message in errors
    assert contents(out) == before


def test_progress_counts_the_part_and_the_shards_of_all_parts(
    out: pathlib.Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(out, "2/2")
    monkeypatch.setattr("converters.job.job_progress._LOG_INTERVAL_S", -1.0)
    lines = run(*TINY, "--part", "1/2")[2].splitlines()
    assert "t, part 1/2: 0/12 frames; all parts: 3/5 shards" in lines
    assert re.search(r"^t, part 1/2: 12/12 frames, .* 0:00 left; all parts: 5/5 shards$", lines[-1])


def start(*arguments: object, before: Any = None) -> Command:
    cache = str(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    env = {"JAX_COMPILATION_CACHE_DIR": cache}
    return Command("converters.vggt", *arguments, env=env, before=before)


@pytest.mark.slow
def test_commands_that_are_killed_leave_the_bytes_of_one_job(
    out: pathlib.Path, whole: dict[str, str]
) -> None:
    """Three processes at a time: after the first shard, or at random moments, all are killed."""
    rng = random.Random(0)
    lines = [(out, *TINY, "--part", f"{number}/3") for number in (1, 2, 3)]
    jobs = [start(*line, before=kill_after_first_shard) for line in lines]
    for job in jobs:
        job.finish(-signal.SIGKILL)
    for _ in range(4):
        jobs = [start(*line) for line in lines]
        for job in jobs:
            time.sleep(rng.uniform(0, 1))
            job.kill()
    for job in [start(*line) for line in lines]:
        job.finish()
    start(out, "--name", "t", "--finish").finish()
    assert contents(out) == whole
