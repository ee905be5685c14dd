"""A recording of an episode, read again by Rerun's own reader."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from rerun.chunk import RrdReader

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.manifest import TaskChange
from pipeline.errors import UserError
from pipeline.inspection.__main__ import main
from pipeline.inspection.rerun_recording import MAX_PLOTS, make_recording
from tests.small_dataset import LENGTH, write_dataset

ROW_ID = "rerun.controls.RowId"
DIMS = ("x_m", "y_m", "gripper")
EPISODE = 2
STEPS = slice(EPISODE * LENGTH, (EPISODE + 1) * LENGTH)

Rows = dict[str, dict[str, list[Any]]]
"""Columns of each entity, by path; static ones below `static`."""


def read(data: bytes, folder: pathlib.Path, kind: str = "recordings") -> Rows:
    """The rows of a recording, or of its blueprint."""
    path = folder / "read.rrd"
    path.write_bytes(data)
    reader = RrdReader(str(path))
    (entry,) = getattr(reader, kind)()
    rows: Rows = {}
    for chunk in reader.stream(store=entry):
        path = f"static{chunk.entity_path}" if chunk.is_static else chunk.entity_path
        entity = rows.setdefault(path, {})
        batch = chunk.to_record_batch()
        # The blueprint's timeline has nanoseconds, which Python's datetime does not hold.
        skipped = {ROW_ID, *chunk.timeline_names} - {"step", "seconds"}
        for name in batch.schema.names:
            if name not in skipped:
                entity.setdefault(name, []).extend(batch[name].to_pylist())
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One with every kind of feature that a recording shows."""
    rng = np.random.default_rng(3)
    shapes = {
        "action": (3,),
        "observation/proprio": (2,),
        "observation/image_front": (8, 6, 3),
        "observation/image_pixels": (4, 6, 3),
        "observation/depth_front": rng.integers(0, 2000, (4 * LENGTH, 8, 6, 1), np.uint16),
    }
    folder = tmp_path_factory.mktemp("recording") / "toy"
    pixels = ("observation/image_pixels",)
    dims = {"action": DIMS}
    return open_dataset(str(write_dataset(folder, shapes, pixels=pixels, dims=dims)))


@pytest.fixture(scope="module")
def recorded(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return read(make_recording(dataset, EPISODE), tmp_path_factory.mktemp("read"))


def test_every_part_of_an_episode_is_an_entity(recorded: Rows) -> None:
    assert {path: len(rows["step"]) for path, rows in recorded.items() if "step" in rows} == {
        "/instruction": 1,
        "/camera/image_front": LENGTH,
        "/camera/image_pixels": LENGTH,
        "/depth/depth_front": LENGTH,
        "/action/x_m": LENGTH,
        "/action/y_m": LENGTH,
        "/action/gripper": LENGTH,
        "/observation/proprio": LENGTH,
    }


def test_times_are_steps_and_seconds(recorded: Rows) -> None:
    for rows in (recorded["/camera/image_front"], recorded["/action/x_m"]):
        assert set(rows) >= {"step", "seconds"}
        assert rows["step"] == list(range(LENGTH))
        assert rows["seconds"] == [timedelta(seconds=step / 10) for step in range(LENGTH)]


def test_values_are_those_of_the_dataset(recorded: Rows, dataset: Dataset) -> None:
    episode = dataset.episode(EPISODE)
    for dim, name in enumerate(DIMS):
        values = recorded[f"/action/{name}"]["Scalars:scalars"]
        assert values == episode["action"][:, dim, None].tolist()
        assert recorded[f"static/action/{name}"]["SeriesLines:names"] == [["recorded"]]
    state = recorded["/observation/proprio"]["Scalars:scalars"]
    assert state == episode["observation"]["proprio"].tolist()
    assert recorded["static/observation/proprio"]["SeriesLines:names"] == [["[0]", "[1]"]]
    assert recorded["/instruction"]["TextDocument:text"] == [["lift the cup"]]


def test_images_are_the_stored_bytes(recorded: Rows, dataset: Dataset) -> None:
    records = [dataset.columns["steps"].read(step) for step in range(STEPS.start, STEPS.stop)]
    front, depth = recorded["/camera/image_front"], recorded["/depth/depth_front"]
    for rows, key in (
        (front["EncodedImage:blob"], "observation/image_front"),
        (depth["EncodedDepthImage:blob"], "observation/depth_front"),
        (recorded["/camera/image_pixels"]["Image:buffer"], "observation/image_pixels"),
    ):
        assert [bytes(row[0]) for row in rows] == [bytes(record[key]) for record in records]
    assert front["EncodedImage:media_type"] == [["image/png"]] * LENGTH
    assert depth["EncodedDepthImage:meter"] == [[1000.0]] * LENGTH
    (form,) = recorded["/camera/image_pixels"]["Image:format"][0]
    assert (form["width"], form["height"]) == (6, 4)


def test_jpegs_are_not_encoded_again(short_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dataset = open_dataset(str(short_dataset))
    rows = read(make_recording(dataset, 1), tmp_path)["/camera/image_wrist"]
    first = dataset.columns["steps"].read(15)["observation/image_wrist"]
    assert bytes(rows["EncodedImage:blob"][0][0]) == bytes(first)
    assert rows["EncodedImage:media_type"] == [["image/jpeg"]] * 11


def test_chunks_are_beside_the_actions_and_end_with_the_episode(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    chunks = [(step, np.full((4, 3), step, np.float32) + np.arange(3)) for step in (0, 4)]
    rows = read(make_recording(dataset, EPISODE, chunks), tmp_path)
    assert rows["/predicted/y_m"]["step"] == [0, 1, 2, 3, 4, 5]
    assert rows["/predicted/y_m"]["Scalars:scalars"] == [[1], [1], [1], [1], [5], [5]]
    assert rows["/action/y_m"]["step"] == list(range(LENGTH))


def test_an_instruction_that_changes_begins_at_its_step(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    changed = dataclasses.replace(dataset.manifest, task_changes=(TaskChange(EPISODE, 4, 1),))
    rows = read(make_recording(dataclasses.replace(dataset, manifest=changed), EPISODE), tmp_path)
    assert rows["/instruction"]["step"] == [0, 4]
    assert rows["/instruction"]["TextDocument:text"] == [["lift the cup"], ["open the drawer"]]


def views(data: bytes, folder: pathlib.Path) -> list[tuple[str, str]]:
    """(kind, name) of each view of the blueprint."""
    rows = read(data, folder, "blueprints")
    found = [
        columns for path, columns in rows.items() if "ViewBlueprint:class_identifier" in columns
    ]
    kinds = ("ViewBlueprint:class_identifier", "ViewBlueprint:display_name")
    return sorted(tuple(columns[kind][0][0] for kind in kinds) for columns in found)  # pyright: ignore[reportReturnType]


def test_the_layout_has_a_view_of_each_camera_and_dimension(
    dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    assert views(make_recording(dataset, 0), tmp_path) == [
        ("2D", "camera/image_front"),
        ("2D", "camera/image_pixels"),
        ("2D", "depth/depth_front"),
        ("TextDocument", "instruction"),
        ("TimeSeries", "gripper"),
        ("TimeSeries", "proprio"),
        ("TimeSeries", "x_m"),
        ("TimeSeries", "y_m"),
    ]


def test_many_dimensions_share_a_plot(tmp_path: pathlib.Path) -> None:
    directory = write_dataset(tmp_path / "wide", {"action": (MAX_PLOTS + 1,)})
    data = make_recording(open_dataset(str(directory)), 0)
    assert views(data, tmp_path) == [("TextDocument", "instruction"), ("TimeSeries", "action")]
    assert r"/action/\[16\]" in read(data, tmp_path)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Runs the command line in this process: (stdout, stderr)."""

    def call(*args: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, args)])
        main()
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_the_command_writes_one_file_and_replaces_it_on_request(
    run: Callable[..., tuple[str, str]], dataset: Dataset, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "out.rrd"
    out, err = run(dataset.path, "--episode", 3, "--rerun", target)
    assert out.startswith("toy, episode 3")
    assert err == f"recording: {target}; open it with: rerun {target}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.rrd"]
    assert RrdReader(str(target)).recordings()[0].recording_id == "toy, episode 3"
    message = (
        r"out.rrd: expected a file that does not exist yet; found a file. Replace it with --ov"
    )
    with pytest.raises(UserError, match=message):
        run(dataset.path, "--rerun", target, "--debug")
    (tmp_path / "folder.rrd").mkdir()
    with pytest.raises(UserError, match=r"folder.rrd: .* found a folder\. Name another one\."):
        run(dataset.path, "--rerun", tmp_path / "folder.rrd", "--overwrite", "--debug")
    run(dataset.path, "--rerun", target, "--overwrite")
    assert RrdReader(str(target)).recordings()[0].recording_id == "toy, episode 0"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--rerun", "out.png"), r"--rerun out.png: expected a file that ends in .rrd, .* .png"),
        (("--rerun", "no/out.rrd"), r"--rerun no/out.rrd: expected .* found no folder no"),
        (("--run", "runs/a"), r"--run runs/a: expected .* found no --rerun\. Add --rerun FILE"),
        (
            ("--rerun", "out.rrd", "--run", "runs/a"),
            r"--run runs/a: expected .* found another command. Use `octograin inspect`",
        ),
        (
            ("--rerun", "out.rrd", "--step", "5"),
            r"--step 5: expected --run RUN, whose checkpoint it chooses; found no --run\. Add",
        ),
    ],
)
def test_mistakes_are_errors_before_anything_is_read(
    args: tuple[str, ...],
    message: str,
    run: Callable[..., tuple[str, str]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run("missing", "--debug", *args)
    assert list(tmp_path.iterdir()) == []


def test_without_rerun_the_command_to_install_it_is_named(
    run: Callable[..., tuple[str, str]],
    dataset: Dataset,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    message = (
        r"--rerun: expected Rerun's SDK, .* run `pip install -c constraints.txt -e '.\[rerun\]'"
    )
    with pytest.raises(UserError, match=message):
        run(dataset.path, "--debug", "--rerun", tmp_path / "out.rrd")
    assert run(dataset.path)[0].startswith("toy\n")
