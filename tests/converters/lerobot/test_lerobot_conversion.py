"""LeRobot sets from the source to a dataset directory, by a mapping that was proposed for them."""

import os
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from converters.job import convert_command
from converters.job.convert import LocalRunner, convert
from converters.job.shard_conversion import ShardJob
from converters.lerobot import lerobot_source
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.mapping.standardize import SourceMapping
from converters.sources.open_source import open_source
from converters.sources.source import Source
from converters.verify.__main__ import open_converted
from converters.verify.verifier import Verifier
from octograin import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError, UserError
from tests.converters.lerobot.lerobot_sets import LENGTHS, TASKS, WrittenSet, write_set


def proposed(source: Source, directory: pathlib.Path) -> SourceMapping:
    path = directory / "mapping.toml"
    path.write_text(describe(source))
    return read_mapping(path)


def complaints(dataset: pathlib.Path, source: pathlib.Path) -> str:
    manifest = load_manifest(epath.Path(dataset))
    return (
        Verifier(epath.Path(dataset), manifest, open_converted(str(source), manifest)).run().text()
    )


@pytest.mark.parametrize("version", ["2.1", "3.0"])
@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_set_is_converted_and_verified(
    tmp_path: pathlib.Path, version: str, storage: str
) -> None:
    written = write_set(tmp_path / "drawer", version, storage)
    source = open_source(str(tmp_path / "drawer"))
    manifest = convert(source, tmp_path / "out", proposed(source, tmp_path))
    assert manifest.episode_lengths == LENGTHS
    assert manifest.tasks == TASKS
    assert manifest.provenance["format"] == f"LeRobot {version}"
    assert ("jpeg_quality" in manifest.provenance) == (storage == "video")
    assert manifest.conventions.control_frequency_hz == 10
    assert manifest.conventions.gripper_dim == 2
    assert complaints(tmp_path / "out", tmp_path / "drawer") == ""
    episode = open_dataset(str(tmp_path / "out")).episode(1)
    np.testing.assert_array_equal(episode["action"], written.values["action"][5:9])


def test_the_proposal_has_the_names_and_leaves_bookkeeping_out(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path / "drawer")
    names = ["left_gripper", "x", "right_gripper"]
    written.change_feature("action", names=names)
    mapping = proposed(open_source(str(tmp_path / "drawer")), tmp_path)
    features = {feature.key: feature for feature in mapping.features}
    assert set(features) == {
        "action",
        "next/done",
        "next/reward",
        "observation/image_primary",
        "observation/proprio",
    }
    assert features["action"].dims == tuple(names)
    assert features["observation/proprio"].dims == ("x_m", "y_m")
    assert [gripper.dim for gripper in mapping.conventions.grippers] == [0, 2]
    assert mapping.task == "steps/task"


def bytes_of(directory: pathlib.Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_the_bytes_depend_on_the_source_alone(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.setattr(lerobot_source, "_SHARD_STEPS", 1)
    write_set(tmp_path / "drawer")
    source = open_source(str(tmp_path / "drawer"))
    mapping = proposed(source, tmp_path)
    convert(source, tmp_path / "one", mapping)
    convert(source, tmp_path / "two", mapping, runner=LocalRunner(2))
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_an_unfinished_conversion_is_not_resumed_in_another_quality(tmp_path) -> None:
    write_set(tmp_path / "drawer", lengths=(4,))
    source = open_source(str(tmp_path / "drawer"), image_quality=50)
    mapping = proposed(source, tmp_path)
    manifest = convert(source, tmp_path / "out", mapping)
    assert complaints(tmp_path / "out", tmp_path / "drawer") == ""
    other = open_source(str(tmp_path / "drawer"))
    jobs = [ShardJob(one, mapping, manifest.schema, epath.Path("out")) for one in (source, other)]
    assert jobs[0].plan_digest != jobs[1].plan_digest  # what a resumed conversion compares


@pytest.mark.parametrize(
    ("file", "old", "new", "is_done"),
    [
        ("tasks.jsonl", TASKS[0], "pull the drawer", False),
        ("info.json", '"names": null', '"names": null, "info": {"depth_scale": 2}', False),
        ("info.json", '"panda"', '"ur5"', True),  # which no step holds
    ],
)
def test_a_shard_is_converted_again_after_a_change_of_what_its_steps_mean(
    tmp_path: pathlib.Path, file: str, old: str, new: str, *, is_done: bool
) -> None:
    write_set(tmp_path / "drawer", "2.1", storage="image", lengths=(2, 3))
    source = open_source(str(tmp_path / "drawer"))
    mapping = proposed(source, tmp_path)
    schema = mapping.schema(source)
    out = epath.Path(tmp_path / "out")
    (out / ".conversion").mkdir(parents=True)
    ShardJob(source, mapping, schema, out).convert(0, lambda num_bytes: None)
    assert ShardJob(source, mapping, schema, out).is_done(0)
    path = tmp_path / "drawer" / "meta" / file
    changed = path.read_text().replace(old, new, 1)
    assert changed != path.read_text()
    path.write_text(changed)
    other = ShardJob(open_source(str(tmp_path / "drawer")), mapping, schema, out)
    assert other.is_done(0) == is_done


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_jpeg_lacks_is_refused(tmp_path: pathlib.Path, quality: int) -> None:
    write_set(tmp_path, lengths=(1,))
    with pytest.raises(UserError, match=rf"a quality of JPEG from 1 to 100; found {quality}"):
        open_source(str(tmp_path), image_quality=quality)


def test_rlds_has_no_use_for_a_quality(mini_rlds: pathlib.Path) -> None:
    with pytest.raises(
        UserError, match="no --image_quality: images of RLDS are stored as they are"
    ):
        open_source(str(mini_rlds), image_quality=90)


def test_a_video_counts_as_more_work_than_its_bytes(tmp_path: pathlib.Path, monkeypatch) -> None:
    written = write_set(tmp_path)
    source = open_source(str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert convert_command._num_workers(source) == 1
    num_bytes = sum(path.stat().st_size for path in written.videos)
    monkeypatch.setattr(convert_command, "_BYTES_A_WORKER", 30 * num_bytes)
    assert convert_command._num_workers(source) == 2
    monkeypatch.undo()
    written.videos[0].unlink()  # as a file of the hub that is fetched later
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert convert_command._num_workers(source) == 2


def _with_nan(written: WrittenSet) -> None:
    actions = written.values["action"].copy()
    actions[3, 1] = np.nan
    columns = pa.FixedSizeListArray.from_arrays(pa.array(actions.ravel()), 3)
    written.change_columns(action=columns)


def test_values_that_are_not_finite_are_refused_with_their_step(tmp_path: pathlib.Path) -> None:
    _with_nan(write_set(tmp_path / "drawer", lengths=(5,)))
    source = open_source(str(tmp_path / "drawer"))
    message = r"file-000.parquet, episode 0, steps/action, step 3: expected finite values"
    with pytest.raises(DataError, match=message):
        convert(source, tmp_path / "out", proposed(source, tmp_path))


@pytest.mark.parametrize("name", ["v3_video", "v3_image", "v3_multi", "v21_video", "v20_video"])
def test_recorded_sets_are_converted_and_verified(
    shared: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    golden = shared / "golden" / "lerobot" / name
    source = open_source(str(golden)).select(0, 2)
    convert(source, tmp_path / "out", proposed(source, tmp_path))
    assert complaints(tmp_path / "out", golden) == ""


def test_a_recorded_nan_is_refused(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = open_source(str(shared / "golden" / "lerobot" / "broken" / "nan_in_action"))
    with pytest.raises(DataError, match=r"episode 0, steps/action, step 3: expected finite values"):
        convert(source, tmp_path / "out", proposed(source, tmp_path))
