"""A column beside others: whatever happens, these stay, and the dataset opens."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from etils import epath

from converters.job.column_job import ColumnJob, plan_difference
from converters.job.columns import check_free, check_name, claimed, remove_column
from converters.job.convert import convert
from converters.sources.open_source import open_source
from converters.verify.verifier import Verifier
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import DataError, UserError
from pipeline.files import to_json_values
from pipeline.vggt.encoder_spec import EncoderSpec, tiny

ROOT = pathlib.Path(__file__).parents[3]
KILLED = pathlib.Path(__file__).with_name("killed_column.py")
KEY = "observation/t"
SPEC = EncoderSpec("none", "d", "none", model=tiny(), layers=(1,), image_size=(28, 28))
ORIGIN = TokenOrigin(SPEC, "image_primary", "all", "int8", 0.25)
COLUMN = Column("t", "step", (ORIGIN.feature(KEY),))


@pytest.fixture
def out(toy: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    """The toy, converted: four episodes of three steps, two shards per column."""
    convert(toy.open(tmp_path / "source"), tmp_path / "out", toy.mapping)
    return tmp_path / "out"


def job_of(out: pathlib.Path, column: Column = COLUMN, **settings: object) -> ColumnJob:
    directory = epath.Path(out)
    return ColumnJob(directory, load_manifest(directory), column, settings, frozenset({"steps"}))


def records(steps: range) -> Iterator[dict[str, bytes]]:
    (feature,) = COLUMN.features
    code, num_coded = feature.code, feature.shape[0] - 5
    for step in steps:
        exact = np.full((5, 64), step, np.float16)
        scales = np.full((num_coded, 1), step, np.float32)
        yield {KEY: code.pack(exact, scales, np.ones((num_coded, 64), np.int8))}


def add(out: pathlib.Path, *, overwrite: bool = False, **settings: object) -> ColumnJob:
    with claimed(epath.Path(out)):
        job = job_of(out, **settings)
        job.begin(overwrite=overwrite)
        for number in job.pending():
            job.write(number, records(job.steps[number]))
        job.finish("CC-BY-NC-4.0", {KEY: ORIGIN})
    return job


def files(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_column_is_added_beside_the_others(out: pathlib.Path) -> None:
    before, manifest = files(out), json.loads((out / "dataset.json").read_text())
    add(out)
    after, added = files(out), json.loads((out / "dataset.json").read_text())
    assert {name: after[name] for name in before if name != "dataset.json"} == {
        name: content for name, content in before.items() if name != "dataset.json"
    }
    own = re.compile(r"t/0000[01]-of-00002-[0-9a-f]{8}\.arrayrecord")
    assert all(own.fullmatch(name) for name in after.keys() - before.keys())
    assert len(after) == len(before) + 2
    for field in manifest:
        if field not in ("schema", "schema_hash", "shards", "licences", "checksum"):
            assert added[field] == manifest[field]
    assert added["schema"]["columns"][:-1] == manifest["schema"]["columns"]
    assert {k: v for k, v in added["shards"].items() if k != "t"} == manifest["shards"]
    assert added["licences"] == manifest["licences"] | {"t": "CC-BY-NC-4.0"}
    assert added["encoders"] == {KEY: to_json_values(ORIGIN)}
    dataset = open_dataset(str(out))
    assert [len(reader) for reader in dataset.columns.values()] == [4, 12, 12]
    (_, scales, _) = COLUMN.features[0].code.split(dataset.columns["t"].read(7)[KEY], (9, 64), "")
    assert set(scales.ravel()) == {7}


def test_a_conversion_over_it_names_the_computed_column_that_goes(
    out: pathlib.Path, toy: Any, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = files(out)
    add(out)
    source = toy.open(tmp_path / "again")
    lost = r"column t \(0\.3 MB\)"
    message = rf"Replace it with --overwrite, which loses its computed {lost}\."
    with pytest.raises(UserError, match=message):
        convert(source, out, toy.mapping)
    convert(source, out, toy.mapping, overwrite=True)
    assert files(out) == before
    assert re.search(rf"{out}: --overwrite also removes the computed {lost}; `oct", caplog.text)
    caplog.clear()
    convert(source, out, toy.mapping, overwrite=True)
    assert "computed" not in caplog.text


def test_settings_of_tokens_that_differ_are_named_by_their_flags() -> None:
    first = {"keep": "all", "store": "f16", "encoder": {"layers": [0], "image_size": [56, 70]}}
    noted = {"settings": {"a_0": first, "a_1": first | {"encoder": {"layers": [1]}}}}
    second = {"encoder": {"layers": [1], "image_size": [56, 56], "model": {"dim": 3}}}
    plan = {"settings": {"a": first | second}, "column": {"name": "a"}}
    assert plan_difference(json.dumps(noted), json.dumps(plan)) == (
        "--layers 0, 1, not 1; --size 56x70, not 56x56"
    )
    other = {**noted, "source": {"digest": "b"}}
    assert plan_difference(json.dumps(noted), json.dumps(other)) == (
        "the dataset's checksum none, not b"
    )


def test_a_removed_column_leaves_the_dataset_as_it_was(out: pathlib.Path) -> None:
    before = files(out)
    add(out)
    num_bytes = sum(path.stat().st_size for path in (out / "t").iterdir())
    assert remove_column(epath.Path(out), "t") == num_bytes
    assert files(out) == before
    assert not (out / "t").exists()
    assert not (out / ".conversion").exists()


@pytest.fixture
def with_tokens(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(mini_dataset, tmp_path / "mini"))


def test_a_token_column_of_the_source_is_removed_too(with_tokens: pathlib.Path) -> None:
    before = load_manifest(epath.Path(with_tokens))
    remove_column(epath.Path(with_tokens), "vggt_tokens")
    after = load_manifest(epath.Path(with_tokens))
    kept = {"episodes", "steps"}
    assert set(after.shards) == kept
    assert after.digest() == before.digest(kept)
    assert not (with_tokens / "vggt_tokens").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("episodes", "found the trajectories. Convert the source again to another dataset."),
        ("steps", "found the images. Convert the source again to another dataset."),
        ("x", "column x: expected one of episodes, steps; found no such column."),
        ("../x", "expected a name of letters, digits, underscores, dots and hyphens; found '../x'"),
    ],
)
def test_what_cannot_be_removed_is_reported(out: pathlib.Path, name: str, found: str) -> None:
    before = files(out)
    with pytest.raises(UserError, match=re.escape(found)):
        remove_column(epath.Path(out), name)
    assert files(out) == before


@pytest.mark.parametrize("name", ["", ".t", "a/b", "..", "a b"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="expected a name of letters, digits"):
        check_name(name)


@pytest.mark.slow
def test_a_killed_job_adds_replaces_and_removes_in_the_end(
    out: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Killed before each change to the file system, and at random moments."""
    (tmp_path / "killed").mkdir()
    result = subprocess.run(
        [sys.executable, KILLED, out, tmp_path / "killed"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    least = {"add": 40, "replace": 40, "parts": 60, "remove": 15}
    for name, count in counts.items():
        assert count["at_change"] == count["changes"] >= least[name]
        assert count["at_random"] == 10


# --- one job at a time, and one plan


def test_a_second_job_is_refused_while_one_is_at_work(out: pathlib.Path, toy: Any) -> None:
    message = "expected a dataset that no other job is changing; found another conversion at work"
    directory = epath.Path(out)
    with claimed(directory):
        for second in (lambda: add(out), lambda: remove_column(directory, "t")):
            with pytest.raises(UserError, match=message):
                second()
        source = open_source(str(out.parent / "source" / "toy"))
        with pytest.raises(UserError, match="found another conversion at work in it"):
            convert(source, out, toy.mapping, overwrite=True)
        assert open_dataset(str(out)).num_steps == 12
    add(out)


def test_a_conversion_at_work_keeps_a_job_out(out: pathlib.Path) -> None:
    (out / ".conversion").mkdir()
    with (out / ".conversion" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"found another conversion at work in it\. Wait for"):
            add(out)


def test_a_folder_that_is_no_dataset_is_left_as_it_is(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(DataError, match=r"dataset\.json; found none in it"),
        claimed(epath.Path(tmp_path)),
    ):
        pass
    assert not list(tmp_path.iterdir())


class KilledError(Exception):
    """Stands for a kill."""


def interrupt(out: pathlib.Path, **settings: object) -> None:
    """A job that ends after its first shard."""
    with contextlib.suppress(KilledError), claimed(epath.Path(out)):
        job = job_of(out, **settings)
        job.begin(overwrite=False)
        job.write(0, records(job.steps[0]))
        raise KilledError


def test_an_unfinished_column_is_not_in_the_dataset_and_resumes(out: pathlib.Path) -> None:
    add(out)
    expected = files(out)
    remove_column(epath.Path(out), "t")
    before = load_manifest(epath.Path(out))
    interrupt(out)
    assert load_manifest(epath.Path(out)) == before
    assert Verifier(epath.Path(out), before).run().text() == ""
    job = job_of(out)
    assert job.is_begun()
    assert job.pending() == [1]
    first = job.directory / job.file(0)
    written = first.stat().mtime
    add(out)
    assert files(out) == expected
    assert first.stat().mtime == written


def test_an_unfinished_column_of_other_settings_is_reported_and_gives_way(
    out: pathlib.Path,
) -> None:
    interrupt(out, store="f16")
    message = (
        f"{out}, column t: expected no unfinished one, or one of these settings; found one with "
        "--store f16, not int8. Finish that one (see "
    )
    with pytest.raises(UserError, match=re.escape(message)):
        add(out, store="int8")
    job = add(out, overwrite=True, store="int8")
    assert sorted(path.name for path in (out / "t").iterdir()) == sorted(
        pathlib.Path(job.file(n)).name for n in (0, 1)
    )


def test_a_corrupt_note_is_reported(out: pathlib.Path) -> None:
    interrupt(out)
    (out / ".conversion" / "t.column.json").write_text("{")
    with pytest.raises(UserError, match="found one with a plan that is corrupt"):
        add(out)


def test_what_an_unfinished_job_left_is_removed_by_its_name(out: pathlib.Path) -> None:
    before = files(out)
    interrupt(out)
    assert remove_column(epath.Path(out), "t") > 0
    assert files(out) == before


def test_two_unfinished_columns_do_not_know_each_other(out: pathlib.Path) -> None:
    interrupt(out)
    other = Column("t2", "step", (ORIGIN.feature("observation/t2"),))
    with contextlib.suppress(KilledError), claimed(epath.Path(out)):
        job_of(out, other).begin(overwrite=False)
        raise KilledError
    add(out)
    assert (out / ".conversion" / "t2.column.json").exists()
    remove_column(epath.Path(out), "t2")
    assert not (out / ".conversion").exists()


def test_a_shard_that_was_cut_is_written_again(out: pathlib.Path) -> None:
    interrupt(out)
    job = job_of(out)
    path = out / job.file(0)
    path.write_bytes(path.read_bytes()[:-1])
    assert job.pending() == [0, 1]


def test_a_shard_of_another_plan_is_not_taken_for_done(out: pathlib.Path) -> None:
    interrupt(out)
    part = out / ".conversion" / "t.00000.column-part.json"
    part.write_text(json.dumps(json.loads(part.read_text()) | {"plan": "0" * 8}))
    assert job_of(out).pending() == [0, 1]


def test_a_replaced_column_is_there_until_the_new_one_is(out: pathlib.Path) -> None:
    add(out, number=1)
    old = load_manifest(epath.Path(out))
    interrupt(out, number=2)
    assert load_manifest(epath.Path(out)) == old
    assert open_dataset(str(out)).columns["t"].read(11)
    add(out, number=2)
    assert load_manifest(epath.Path(out)).shards["t"] != old.shards["t"]
    assert len(list((out / "t").iterdir())) == 2


def test_what_was_edited_meanwhile_stays(out: pathlib.Path, reseal: Any) -> None:
    interrupt(out)
    path = out / "dataset.json"
    with claimed(epath.Path(out)):
        job = job_of(out)
        job.begin(overwrite=False)
        content = json.loads(path.read_text())
        content["licences"]["steps"] = "edited"
        path.write_text(json.dumps(content))
        reseal(out)
        job.write(1, records(job.steps[1]))
        assert job.finish("none", {KEY: ORIGIN}).licences == {
            "episodes": "unknown",
            "steps": "edited",
            "t": "none",
        }


def test_images_that_were_replaced_meanwhile_are_reported(out: pathlib.Path, reseal: Any) -> None:
    path = out / "dataset.json"
    with claimed(epath.Path(out)):
        job = job_of(out)
        job.begin(overwrite=False)
        for number in job.pending():
            job.write(number, records(job.steps[number]))
        content = json.loads(path.read_text())
        content["shards"]["steps"][0]["digest"] = "0" * 32
        path.write_text(json.dumps(content))
        reseal(out)
        with pytest.raises(DataError, match="the images that the tokens were computed from; found"):
            job.finish("none", {KEY: ORIGIN})
    assert not job_of(out).is_begun()


def test_a_full_disk_is_reported_before_the_first_byte(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(out)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000))
    job = job_of(out)
    job.check_room([0])
    assert job.shard_bytes(0) == 6 * (5 * 128 + 4 * 68 + 100) + (128 << 10)
    message = r"expected 0\.3 MB free on the disk, for what is to be written; found 0\.2 MB\."
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(UserError, match=message):
        job.check_room([0, 1])


def test_a_folder_that_may_not_be_written_is_reported(out: pathlib.Path, as_nobody: Any) -> None:
    out.chmod(0o555)
    with as_nobody(), pytest.raises(UserError, match="expected a destination that can be written"):
        add(out)
    out.chmod(0o755)


# --- names


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("steps", "observation/s", "column steps: expected a new column; found one of the source,"),
        ("t", KEY, "column t: expected a new column; found one that was computed before. Replace "),
        ("u", KEY, "observation/t: expected a new feature; found one of the column t. Take anoth"),
        ("u", "observation/image_primary", "found one of the column steps. Take another --name."),
    ],
)
def test_a_name_that_is_taken_is_reported(
    out: pathlib.Path, name: str, key: str, message: str
) -> None:
    add(out)
    manifest = load_manifest(epath.Path(out))
    with pytest.raises(UserError, match=re.escape(message)):
        check_free(manifest, name, [key], str(out), overwrite=False)
    check_free(manifest, "t", [KEY], str(out), overwrite=True)
    with pytest.raises(UserError, match="which --overwrite does not replace"):
        check_free(manifest, "steps", ["x"], str(out), overwrite=True)


# --- what the rest of the project makes of it


def test_verify_finds_what_is_wrong_with_coded_tokens(out: pathlib.Path) -> None:
    with claimed(epath.Path(out)):
        job = job_of(out)
        job.begin(overwrite=False)
        for number in job.pending():
            spoilt = [dict(record) for record in records(job.steps[number])]
            if number == 1:
                spoilt[2][KEY] = b"\x00\x7c" + spoilt[2][KEY][2:]  # infinity, as a float16
            job.write(number, spoilt)
        job.finish("none", {KEY: ORIGIN})
    report = Verifier(epath.Path(out), load_manifest(epath.Path(out))).run().text()
    assert report.count("\n") == 0
    assert (
        "record 2, observation/t: expected finite tokens, and scales from 0; found 1 oth" in report
    )


def test_an_overwritten_conversion_takes_computed_columns_along(
    out: pathlib.Path, toy: Any
) -> None:
    add(out)
    interrupt(out, number=2)
    source = open_source(str(out.parent / "source" / "toy"))
    convert(source, out, toy.mapping, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "episodes",
        "statistics.json",
        "steps",
    ]


# --- what is not the dataset's own stays


def link_elsewhere(out: pathlib.Path, name: str) -> pathlib.Path:
    """Moves a column to another place, with a file of the user's beside it, and links to it."""
    elsewhere = out.parent / "elsewhere"
    (out / name).rename(elsewhere)
    (out / name).symlink_to(elsewhere)
    (elsewhere / "mine.npy").write_bytes(b"mine")
    return elsewhere


def test_a_linked_column_is_removed_without_what_lies_behind_the_link(out: pathlib.Path) -> None:
    add(out)
    elsewhere = link_elsewhere(out, "t")
    held = files(elsewhere)
    assert remove_column(epath.Path(out), "t") == 0
    assert files(elsewhere) == held
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json",
        "episodes",
        "statistics.json",
        "steps",
    ]
    assert open_dataset(str(out)).num_steps == 12


def test_a_linked_column_is_not_replaced(out: pathlib.Path, toy: Any) -> None:
    job = add(out, number=1)
    elsewhere = link_elsewhere(out, "t")
    before = files(out)
    with pytest.raises(UserError, match=r"found a link to another place: t -> .*/elsewhere\."):
        check_free(load_manifest(job.directory), "t", [KEY], str(out), overwrite=True)
    source = open_source(str(out.parent / "source" / "toy"))
    with pytest.raises(UserError, match=r"found other files: t/mine\.npy"):
        convert(source, out, toy.mapping, overwrite=True)
    assert (elsewhere / "mine.npy").read_bytes() == b"mine"
    (elsewhere / "mine.npy").unlink()
    held = files(elsewhere)
    with pytest.raises(UserError, match=r"found a link to another place: t -> .*/elsewhere\."):
        convert(source, out, toy.mapping, overwrite=True)
    assert (files(out), files(elsewhere)) == (before, held)
    assert open_dataset(str(out)).columns["t"].read(0)


@pytest.mark.parametrize(
    "name", ["a.npy", "00000-of-00001.arrayrecord", ".a.npy.0123abcd.7.tmp", "notes.txt"]
)
def test_a_folder_of_the_users_own_is_no_place_for_a_column(
    out: pathlib.Path, toy: Any, name: str
) -> None:
    (out / "t").mkdir()
    (out / "t" / name).write_bytes(b"mine")
    before = files(out)
    with pytest.raises(UserError, match="a new folder, or an empty one; found other files: t/"):
        check_free(load_manifest(epath.Path(out)), "t", [KEY], str(out), overwrite=True)
    with pytest.raises(UserError, match="found no such column"):
        remove_column(epath.Path(out), "t")
    source = open_source(str(out.parent / "source" / "toy"))
    with pytest.raises(UserError, match=re.escape(f"found other files: t/{name}. Name another")):
        convert(source, out, toy.mapping, overwrite=True)
    assert files(out) == before


def test_the_users_files_beside_the_shards_of_a_column_stay(out: pathlib.Path) -> None:
    add(out, number=1)
    mine = ["a.npy", "00009-of-00009.arrayrecord", ".b.npy.0123abcd.7.tmp"]
    for name in mine:
        (out / "t" / name).write_bytes(b"mine")
    job = add(out, overwrite=True, number=2)
    own = [pathlib.Path(job.file(number)).name for number in (0, 1)]
    assert sorted(path.name for path in (out / "t").iterdir()) == sorted([*mine, *own])
    remove_column(epath.Path(out), "t")
    assert sorted(path.name for path in (out / "t").iterdir()) == sorted(mine)
    assert not (out / ".conversion").exists()


def raise_killed(path: epath.Path) -> int:
    raise KilledError(path)


def test_a_removal_that_was_killed_is_finished_by_the_next_job(
    out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(out)
    add(out)
    monkeypatch.setattr("converters.job.file_ownership.delete", raise_killed)
    with pytest.raises(KilledError):
        remove_column(epath.Path(out), "t")
    monkeypatch.undo()
    assert "t" not in load_manifest(epath.Path(out)).shards
    assert len(list((out / "t").iterdir())) == 2
    with claimed(epath.Path(out)):
        pass
    assert files(out) == before
