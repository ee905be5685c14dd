"""Reading LeRobot sets: every version, and every kind of feature."""

import io
import pathlib
import pickle
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from etils import epath
from PIL import Image

from converters.lerobot import lerobot_source
from converters.lerobot.lerobot_source import LeRobotSource, open_lerobot, shard_ranges
from converters.sources.image_encoding import encode_png
from converters.sources.open_source import open_source
from pipeline.errors import UserError
from tests.converters.lerobot.lerobot_sets import (
    CAMERA,
    FPS,
    LENGTHS,
    SIZE,
    WrittenSet,
    png,
    write_depth,
    write_set,
)

IMAGE = "steps/observation/images/top"


def read(source: LeRobotSource, wanted=None) -> list:
    """The values of all episodes, in order."""
    episodes = [e for shard in source.shards for e in source.episodes(shard, wanted)]
    for episode in episodes:
        assert isinstance(episode.values, dict), episode.values
    return [episode.values for episode in episodes]


def mean_colours(images) -> np.ndarray:
    return np.array([simplejpeg.decode_jpeg(image).mean(axis=(0, 1)) for image in images])


def check_all(written: WrittenSet, episodes: list) -> None:
    start = 0
    for length, values in zip(LENGTHS, episodes, strict=True):
        rows = slice(start, start + length)
        for name, expected in written.values.items():
            found = values["steps/" + name.replace(".", "/")]
            assert (found.dtype, found.shape) == (expected.dtype, expected[rows].shape)
            np.testing.assert_array_equal(found, expected[rows])
        assert [text.decode() for text in values["steps/task"]] == written.tasks[rows]
        assert values["steps/note"] == [
            f"step {step}".encode() for step in range(*rows.indices(99))
        ]
        start += length


@pytest.mark.parametrize("version", ["2.0", "2.1", "3.0"])
def test_a_set_of_every_version_is_read(tmp_path: pathlib.Path, version: str) -> None:
    written = write_set(tmp_path / "drawer", version)
    source = open_lerobot(tmp_path / "drawer")
    source.check_files()
    assert (source.format, source.name) == (f"LeRobot {version}", "drawer")
    episodes = read(source)
    check_all(written, episodes)
    found = mean_colours([image for values in episodes for image in values[IMAGE]])
    assert np.abs(found - written.colours).max() < 4  # a neighbouring frame differs by 12


def test_frames_are_found_where_float32_is_too_coarse_for_their_times(
    tmp_path: pathlib.Path,
) -> None:
    written = write_set(tmp_path, lengths=(5,))
    # More than an hour into a recording: some timestamps are 0.0002 s off the grid of 10 fps.
    written.change_columns(timestamp=pa.array((4200 + np.arange(5) / FPS).astype(np.float32)))
    path = tmp_path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    (row,) = pq.read_table(path).to_pylist()
    row |= {f"videos/{CAMERA}/from_timestamp": -4200.0, f"videos/{CAMERA}/to_timestamp": -4199.5}
    pq.write_table(pa.Table.from_pylist([row]), path)
    (values,) = read(open_lerobot(tmp_path))
    assert np.abs(mean_colours(values[IMAGE]) - written.colours).max() < 4


@pytest.mark.parametrize("version", ["2.1", "3.0"])
def test_encoded_images_stay_as_they_are(tmp_path: pathlib.Path, version: str) -> None:
    written = write_set(tmp_path, version, "image")
    episodes = read(open_lerobot(tmp_path))
    check_all(written, episodes)
    images = [image for values in episodes for image in values[IMAGE]]
    assert images == [png(colour) for colour in written.colours]


def test_keys_have_types_and_names(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    keys = open_lerobot(tmp_path).keys
    assert list(keys) == sorted(keys)
    found = {k: (key.kind, key.dtype, key.shape, key.dims) for k, key in keys.items()}
    assert found[IMAGE] == ("image", "uint8", (*SIZE, 3), ())
    assert found["steps/action"] == ("tensor", "float32", (3,), ("dx", "dy", "gripper"))
    assert found["steps/observation/state"] == ("tensor", "float32", (2,), ("x_m", "y_m"))
    assert found["steps/next/done"] == ("tensor", "bool", (), ())
    assert found["steps/task"] == found["steps/note"] == ("text", "utf8", (), ())


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([*SIZE, 3], ["height", "width", "rgb"]),
        ([*SIZE, 3], None),
        ([3, *SIZE], ["channels", "height", "width"]),
        ([3, *SIZE], None),
    ],
)
def test_an_image_is_declared_with_its_channels_first_or_last(tmp_path, shape, names) -> None:
    written = write_set(tmp_path)
    written.change_feature(CAMERA, shape=shape, names=names)
    assert open_lerobot(tmp_path).keys[IMAGE].shape == (*SIZE, 3)


def test_only_what_is_wanted_is_read(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path)
    shutil.rmtree(tmp_path / "videos")
    first = read(open_lerobot(tmp_path), ["steps/action", "steps/task"])[0]
    assert set(first) == {"steps/action", "steps/task"}
    np.testing.assert_array_equal(first["steps/action"], written.values["action"][:5])


def test_quality_is_that_of_the_source(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path, lengths=(1,))
    coarse = open_lerobot(tmp_path, image_quality=30)
    assert coarse.notes["jpeg_quality"] == "30"
    assert coarse.notes[f"video {CAMERA}"] == "libx264, yuv420p"
    tables = [
        Image.open(io.BytesIO(read(s)[0][IMAGE][0])).quantization
        for s in (coarse, open_lerobot(tmp_path))
    ]
    assert max(tables[0][0]) > 10 * max(tables[1][0])


# --- shards and ranges


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([10, 20], [(0, 2)]),
        ([2000, 1, 1], [(0, 1), (1, 3)]),
        ([1500, 600, 5000, 7], [(0, 2), (2, 3), (3, 4)]),
        ([300] * 10_000, [(i, i + 10) for i in range(0, 10_000, 10)]),
    ],
)
def test_a_shard_ends_with_the_episode_that_fills_it(lengths, expected) -> None:
    assert shard_ranges(lengths) == expected


@pytest.fixture
def cut(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> LeRobotSource:
    """A set whose shards are an episode each."""
    monkeypatch.setattr(lerobot_source, "_SHARD_STEPS", 1)
    write_set(tmp_path)
    return open_lerobot(tmp_path)


def test_a_shard_gives_the_same_bytes_whatever_was_read_before(cut: LeRobotSource) -> None:
    in_order = read(cut)
    copy = pickle.loads(pickle.dumps(cut))
    for number in (2, 0, 1):
        [alone] = copy.episodes(copy.shards[number])
        assert alone.values[IMAGE] == in_order[number][IMAGE]
        assert alone.num_bytes > 0
    assert len({shard.name for shard in cut.shards}) == 3
    assert [len(shard.paths) for shard in cut.shards] == [2, 2, 2]


def test_a_range_of_episodes_is_read_with_its_files_alone(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    whole = open_lerobot(tmp_path)
    part = whole.select(1, 2)
    assert (part.selection, len(part.shards), part.shards[0].num_episodes) == ("1:2 of 3", 1, 1)
    assert read(part)[0][IMAGE] == read(whole)[1][IMAGE]
    (tmp_path / "data" / "chunk-000" / "file-001.parquet").unlink()  # the last episode's
    part.check_files()
    assert [episode.number for episode in part.episodes(part.shards[0])] == [1]
    with pytest.raises(UserError, match=r"0 <= A < B <= 3; found 2:4"):
        whole.select(2, 4)
    assert whole.select(0, 3) == whole
    with pytest.raises(UserError, match="expected no split: a LeRobot dataset is read whole"):
        open_lerobot(tmp_path, "test")


def test_a_directory_is_opened_as_what_lies_there(tmp_path: pathlib.Path, monkeypatch) -> None:
    write_set(tmp_path, lengths=(1,))
    write_set(tmp_path / "set [1]", lengths=(1,))  # no pattern
    assert open_source(str(tmp_path / "set [1]")).format == "LeRobot 3.0"
    for name in [name for name in sys.modules if name.startswith("converters.lerobot.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"expected the packages that read LeRobot; .*\[lerobot\]"):
        open_source(str(tmp_path))
    (tmp_path / "meta" / "info.json").unlink()
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"info.json: .* found no such file"):
        open_source(str(tmp_path))


# --- what few sets have


def test_subtasks_are_texts_and_language_columns_are_reported(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, lengths=(3,))
    column = {"dtype": "int64", "shape": [1], "names": None}
    written.change_feature("subtask_index", **column)
    written.change_feature("language_persistent", dtype="language", shape=[1], names=None)
    written.change_columns(
        subtask_index=pa.array([1, -1, 0]), language_persistent=pa.array([[{"role": "user"}]] * 3)
    )
    table = pa.table({"subtask_index": [0, 1], "__index_level_0__": ["reach", "pull"]})
    pq.write_table(table, tmp_path / "meta" / "subtasks.parquet")
    source = open_lerobot(tmp_path)
    source.check_files()
    assert read(source)[0]["steps/subtask"] == [b"pull", b"", b"reach"]
    assert source.keys["steps/language_persistent"].kind == "other"
    assert "language" in source.keys["steps/language_persistent"].dtype


def test_tasks_are_read_from_an_index_without_a_name(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path)
    path = tmp_path / "meta" / "tasks.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["task_index", "__index_level_0__"]), path)
    check_all(written, read(open_lerobot(tmp_path)))


def test_numbers_are_read_from_lists_of_any_form(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, "2.1", lengths=LENGTHS)
    state, grid = written.values["observation.state"][:5], np.arange(20).reshape(5, 2, 2)
    written.change_feature("grid", dtype="float32", shape=[2, 2], names=None)
    for path in written.data_files[1:]:
        path.unlink()
    written.change_columns(
        **{
            "observation.state": pa.array(state.astype(np.float64).tolist()),
            "next.reward": pa.array([[float(step)] for step in range(5)]),
            "grid": pa.array(grid.astype(np.float32).tolist()),
        }
    )
    [values] = read(open_lerobot(tmp_path).select(0, 1))
    np.testing.assert_array_equal(values["steps/observation/state"], state)
    np.testing.assert_array_equal(values["steps/next/reward"], np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(values["steps/grid"], grid.astype(np.float32))


def test_depth_is_in_millimetres_and_zero_without_a_reading(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, "2.1", lengths=(2,))
    code = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5}
    info = {"is_depth_map": True, "video.use_log": True, **code}
    declared = {"dtype": "video", "shape": [32, 40, 1], "names": ["height", "width", "channel"]}
    written.change_feature("observation.images.depth", **declared, info=info)
    codes = np.linspace(0, 4095, 2 * 32 * 40).astype(np.uint16).reshape(2, 32, 40)
    folder = tmp_path / "videos" / "chunk-000" / "observation.images.depth"
    write_depth(folder / "episode_000000.mp4", codes)
    source = open_lerobot(tmp_path)
    source.check_files()
    key = source.keys["steps/observation/images/depth"]
    assert (key.kind, key.dtype, key.shape) == ("image", "uint16", (32, 40, 1))
    images = read(source)[0][key.key]
    found = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])
    low, high = np.log(0.01 + 3.5), np.log(10 + 3.5)
    expected = 1000 * (np.exp(codes / 4095 * (high - low) + low) - 3.5)
    assert found.flat[0] == 0
    assert np.abs(found - expected)[codes > 0].max() <= 0.5001


def test_depth_of_unknown_scale_is_reported(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path)
    written.change_feature(CAMERA, info={"video.is_depth_map": True})
    key = open_lerobot(tmp_path).keys[IMAGE]
    assert (key.kind, key.has_images) == ("other", True)
    assert "without depth_min" in key.dtype


def test_a_set_in_an_object_store_is_read(tmp_path: pathlib.Path, object_store: epath.Path) -> None:
    written = write_set(tmp_path / "drawer")
    for path in (tmp_path / "drawer").rglob("*.*"):
        if path.is_file():
            target = object_store / "drawer" / path.relative_to(tmp_path / "drawer").as_posix()
            target.write_bytes(path.read_bytes())
    source = open_lerobot(object_store / "drawer")
    source.check_files()
    episodes = read(source)
    check_all(written, episodes)
    assert episodes[2][IMAGE] == read(open_lerobot(tmp_path / "drawer"))[2][IMAGE]


def test_depth_images_in_millimetres_are_png_whatever_they_were(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, storage="image", lengths=(2,))
    depth = np.arange(2 * 32 * 40, dtype=np.uint16).reshape(2, 32, 40) * 20
    tiff = io.BytesIO()
    Image.fromarray(depth[1]).save(tiff, "TIFF")
    encoded = [encode_png(depth[0][:, :, None]), tiff.getvalue()]
    images = pa.array([{"bytes": image, "path": None} for image in encoded])
    written.change_columns(**{"observation.images.depth": images})
    names = ["height", "width", "channels"]
    info = {"is_depth_map": True, "depth_unit": "mm"}
    declared = {"dtype": "image", "shape": [32, 40, 1], "names": names, "info": info}
    written.change_feature("observation.images.depth", **declared)
    source = open_lerobot(tmp_path)
    key = source.keys["steps/observation/images/depth"]
    assert (key.kind, key.dtype, key.shape) == ("image", "uint16", (32, 40, 1))
    found = read(source)[0][key.key]
    assert found[0] == encoded[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found[1]))), depth[1])
    tiff = io.BytesIO()
    Image.fromarray(depth[1].astype(np.float32)).save(tiff, "TIFF")
    images = pa.array([{"bytes": image, "path": None} for image in (encoded[0], tiff.getvalue())])
    written.change_columns(**{"observation.images.depth": images})
    [episode] = source.episodes(source.shards[0])
    assert "expected depth images of 16 bits, as the unit mm says; found float32" in str(
        episode.values
    )
    written.change_feature("observation.images.depth", info={**info, "depth_unit": "m"})
    key = open_lerobot(tmp_path).keys[key.key]
    assert (key.kind, key.has_images) == ("other", True)
    assert 'without depth_unit "mm"' in key.dtype


def test_texts_of_episodes_are_read_where_there_are_any(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    [path] = (tmp_path / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    texts = pa.array(["one", "deux", "три"])
    pq.write_table(table.append_column("episode_metadata/source_id", texts), path)
    source = open_lerobot(tmp_path)
    assert source.keys["episode_metadata/source_id"].kind == "text"
    found = [values["episode_metadata/source_id"] for values in read(source)]
    assert found == [[b"one"], [b"deux"], ["три".encode()]]
    # LeRobot leaves the column out of the episodes that it adds.
    pq.write_table(table.slice(2), path.with_name("file-001.parquet"))
    pq.write_table(table.slice(0, 2).append_column("episode_metadata/source_id", texts[:2]), path)
    found = [values["episode_metadata/source_id"] for values in read(open_lerobot(tmp_path))]
    assert found == [[b"one"], [b"deux"], [b""]]
