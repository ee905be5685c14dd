"""LeRobot sets that are broken: each is refused by a sentence that names the file and the fault."""

import json
import pathlib
import re
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from converters.lerobot.lerobot_source import open_lerobot
from converters.lerobot.parquet_rows import open_rows
from pipeline.errors import UserError
from tests.converters.lerobot.lerobot_sets import (
    CAMERA,
    FPS,
    SIZE,
    WrittenSet,
    write_set,
    write_video,
)

GOLDEN = {
    "codebase_v1_6": r"info.json, codebase_version: .* found v1.6. Convert it to 2.0 first",
    "codebase_v4_0": r"info.json, codebase_version: .* found v4.0. Write it as version 3.0",
    "episode_index_gap": r"file-000.parquet, episode 1, step 0: expected episode_index 1 in row 12;"
    r" found 5",
    "feature_width_mismatch": r"file-000.parquet: expected action as float32\[6\]; found action as"
    r" .*float.*\[7\]",
    "missing_column": r"file-000.parquet: expected a column action; found no action",
    "missing_data_file": r"found no data/chunk-000/file-000.parquet",
    "missing_episodes": r"meta/episodes: expected the list of episodes",
    "missing_info": r"meta/info.json: .* found no such file",
    "missing_tasks": r"meta/tasks.parquet: .* found no such file",
    "missing_video": r"found no videos/observation.images.image/chunk-000/file-000.mp4",
    "off_grid_timestamps": r"file-000.parquet, episode 0, step 1: expected the timestamp 0.0500 s, "
    r"on the grid of 20 fps; found 0.0630 s",
    "rows_missing": r"episode 1: expected rows 12 to 23; found 20 rows in the file",
    "short_video": r"file-000.mp4, episode 1, step 7: expected a frame at 0.9500 s, number 19 .*; "
    r"found its last frame at 0.9000 s",
    "task_index_out_of_range": r"episode 1, steps/task, step 0: expected the number of one of 2 "
    r"texts in meta/; found 9",
    "truncated_info": r"meta/info.json: .* found JSONDecodeError",
    "truncated_parquet": r"file-000.parquet: expected a Parquet file that can be read; found",
    "truncated_video": r"file-000.mp4, episode 0, step \d+: expected a video that PyAV reads",
    "v1_6_layout": r"meta_data/info.json, codebase_version: .* found a version before 2.0",
    "video_size_mismatch": r"file-000.mp4: expected frames of 48x48, .*; found 64x64",
    "wrong_fps": r"file-000.parquet, episode 0: expected 12 rows, and frames at 30 fps, .*; found "
    r"18 frames of observation.images.image",
    "wrong_total_episodes": r"meta/episodes: expected 3 episodes, .*; found 2",
    "wrong_total_frames": r"meta/episodes: expected 30 steps in all, .*; found 24",
}
"""What is reported of each broken set; a NaN is found when its types at rest are made."""


def faults(directory: pathlib.Path) -> list[str]:
    """What is reported of a set: the error that it cannot be opened for, or its bad episodes."""
    try:
        source = open_lerobot(directory)
        source.check_files()
        episodes = [e for shard in source.shards for e in source.episodes(shard)]
    except UserError as error:
        return [str(error)]
    return [str(e.values) for e in episodes if isinstance(e.values, UserError)]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_broken_set_is_refused(shared: pathlib.Path, name: str) -> None:
    found = faults(shared / "golden" / "lerobot" / "broken" / name)
    assert re.search(GOLDEN[name], found[0])


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit_lines(path: pathlib.Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _no_codec(written: WrittenSet) -> None:
    path = written.videos[0]
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))


def _strange_names(written: WrittenSet) -> None:
    path = written.videos[0]
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"\xdeideoHandler"))


CASES: dict[str, tuple[Callable[[WrittenSet], None], str]] = {
    "no codec": (_no_codec, r"episode_000000.mp4: expected a video in a codec that PyAV decodes"),
    "no UTF-8 in a video": (
        _strange_names,
        r"episode_000000.mp4: .*PyAV reads; found 'utf-8' codec",
    ),
    "own video is cut": (lambda w: _cut(w.videos[0]), r"episode_000000.mp4: .*PyAV reads; found"),
    "own data is cut": (lambda w: _cut(w.data_files[0]), r"episode_000000.parquet: .* can be read"),
    "other rate of a video": (
        lambda w: w.change_info(fps=2 * FPS),
        r"episode_000000.mp4: expected 20 frames per second, .*; found 10",
    ),
    "no frames": (
        lambda w: write_video(w.videos[0], np.zeros((2, *SIZE, 3), np.uint8)),
        r"episode_000000.mp4, episode 0, step 2: expected a frame at 0.2000 s.* frame at 0.1000",
    ),
    "null": (
        lambda w: w.change_columns(**{"next.reward": pa.array([1.0, None, 1, 1, 1], pa.float32())}),
        r"episode 0, next.reward: expected float32\[\] in each step.*; found nulls",
    ),
    "ragged": (
        lambda w: w.change_columns(action=pa.array([[1.0, 2, 3]] * 4 + [[1.0]])),
        r"episode 0, action: expected float32\[3\] in each step.*; found lists of 3 and of other",
    ),
    "other width of lists": (
        lambda w: w.change_columns(action=pa.array([[1.0, 2]] * 5)),
        r"episode 0, action: expected float32\[3\].*; found 2 values",
    ),
    "texts for numbers": (
        lambda w: w.change_columns(action=pa.array(["up"] * 5)),
        r"episode_000000.parquet: expected action as float32\[3\]; found action as string",
    ),
    "numbers for a text": (
        lambda w: w.change_columns(note=pa.array(range(5))),
        r"expected note as string; found note as int64",
    ),
    "no timestamps": (
        lambda w: w.change_columns(timestamp=None),
        r"expected a column timestamp; found no timestamp",
    ),
    "times as texts": (
        lambda w: w.change_columns(timestamp=pa.array(["0.0"] * 5)),
        r"expected timestamp as float32\[\]; found timestamp as string",
    ),
    "nulls in times": (
        lambda w: w.change_columns(timestamp=pa.array([0.0, 0.1, None, 0.3, 0.4], pa.float32())),
        r"episode 0, step 2: expected the timestamp 0.2000 s, .*; found nan s",
    ),
    "null as a task": (
        lambda w: w.change_columns(task_index=pa.array([0, None, 0, 1, 1])),
        r"episode 0, task_index: expected int64\[\] in each step.*; found nulls",
    ),
    "gap in frames": (
        lambda w: w.change_columns(frame_index=pa.array([0, 1, 3, 4, 5])),
        r"episode 0, step 2: expected frame_index 2 in row 2; found 3",
    ),
    "no version": (
        lambda w: w.change_info(codebase_version=None),
        r"expected version 2.0, 2.1 or 3.0 of the LeRobot format; found 'None'",
    ),
    "no features": (lambda w: w.change_info(features=[]), r"info.json: expected features as dict"),
    "feature is a text": (
        lambda w: w.change_info(features={"action": "float32"}),
        r"info.json: expected a table as the feature action; found 'float32'",
    ),
    "no rate": (
        lambda w: w.change_info(fps=0),
        r"expected fps as a finite number above 0; found 0",
    ),
    "endless folders": (
        lambda w: w.change_info(chunks_size=float("inf")),
        r"expected chunks_size as a finite number above 0; found inf",
    ),
    "no shape": (
        lambda w: w.change_feature("action", shape=7),
        r"features, action: expected a dtype, and a shape of whole numbers above 0",
    ),
    "other template": (
        lambda w: w.change_info(data_path="data/{file}.parquet"),
        r"'data/{file}.parquet': expected a template of episode_chunk, .*; found KeyError: 'file'",
    ),
    "feature named as the task": (
        lambda w: w.change_feature("task", dtype="string", shape=[1]),
        r"expected one feature as steps/task; found the text of its index and task",
    ),
    "two names of one key": (
        lambda w: w.change_feature("next/done", dtype="bool", shape=[1]),
        r"expected one feature as steps/next/done; found next.done and next/done",
    ),
    "line of no episode": (
        lambda w: _edit_lines(w.directory / "meta" / "episodes.jsonl", '"length": 4', '"len": 4'),
        r"episodes.jsonl, line 2: expected an episode_index and a length; found 1 and None",
    ),
    "no such episode": (
        lambda w: _edit_lines(
            w.directory / "meta" / "episodes.jsonl", '"episode_index": 1', '"episode_index": 8'
        ),
        r"episodes.jsonl: expected episodes 0 to 2; found no episode 1",
    ),
    "line of no task": (
        lambda w: _edit_lines(w.directory / "meta" / "tasks.jsonl", "task_index", "index"),
        r"tasks.jsonl, line 1: expected a task_index and a task",
    ),
}


def test_an_image_that_is_not_in_its_column_is_refused(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, storage="image", lengths=(2,))
    written.change_columns(**{CAMERA: pa.array([{"bytes": None, "path": "a.png"}] * 2)})
    message = r"episode 0, observation.images.top, step 0: .*; found only its path a.png"
    assert re.search(message, faults(tmp_path)[0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> WrittenSet:
    return write_set(tmp_path_factory.mktemp("base") / "drawer", "2.1")


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_reported_with_its_place(base: WrittenSet, tmp_path, case: str) -> None:
    directory = tmp_path / "drawer"
    shutil.copytree(base.directory, directory)
    change, message = CASES[case]
    change(WrittenSet(directory, base.values, base.tasks, base.colours))
    found = faults(directory)
    assert len(found) == 1  # the other episodes are whole
    assert re.search(message, found[0])


def test_a_packed_set_without_columns_of_its_episodes_is_refused(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    [path] = (tmp_path / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["dataset_from_index"]), path)
    assert "found no dataset_from_index" in faults(tmp_path)[0]
    nothing = pa.nulls(len(table), pa.int64())
    lengths = table.drop_columns(["length"]).append_column("length", nothing)
    pq.write_table(lengths, path)
    assert "episode 0: expected a number in length; found None" in faults(tmp_path)[0]


def test_rows_behind_a_corrupt_row_group_are_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": np.arange(300)})
    pq.write_table(table, path, row_group_size=100, compression="gzip", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(content)
    with open_rows(epath.Path(path), ["x"]) as rows:
        for start in (0, 50, 220, 260):
            found = rows.take(start, start + 30, "rows").column("x").to_pylist()
            assert found == list(range(start, start + 30))
            with pytest.raises(UserError, match="expected a Parquet file that can be read"):
                rows.take(150, 180, "rows")


def test_an_episode_without_steps_is_refused_alone(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, "2.1")
    episodes = tmp_path / "meta" / "episodes.jsonl"
    _edit_lines(episodes, '"length": 4', '"length": 0')
    written.change_info(total_frames=12)
    [found] = faults(tmp_path)
    assert "episode 1: expected at least one step; found none" in found


def test_tasks_without_texts_are_refused(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    pq.write_table(pa.table({"task_index": [0, 1]}), tmp_path / "meta" / "tasks.parquet")
    assert re.search(
        r"expected a column task_index and one of texts; found task", faults(tmp_path)[0]
    )


def test_times_that_are_not_declared_are_numbers_too(base: WrittenSet, tmp_path) -> None:
    directory = tmp_path / "drawer"
    shutil.copytree(base.directory, directory)
    written = WrittenSet(directory, base.values, base.tasks, base.colours)
    features = json.loads((directory / "meta" / "info.json").read_text())["features"]
    written.change_info(features={k: v for k, v in features.items() if k != "timestamp"})
    written.change_columns(timestamp=pa.array(["0.0"] * 5))
    assert "expected numbers in timestamp; found timestamp as string" in faults(directory)[0]


def test_a_task_without_a_text_is_refused(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path)
    table = pa.table({"task_index": [0, 1], "task": ["open", None]})
    pq.write_table(table, tmp_path / "meta" / "tasks.parquet")
    message = r"expected whole numbers in task_index, and a text for each; found 1 and None"
    assert re.search(message, faults(tmp_path)[0])


def test_texts_that_are_no_utf8_are_refused_or_left_to_the_conversion(tmp_path) -> None:
    written = write_set(tmp_path, lengths=(2,))
    texts = pa.array([b"open", b"\xff"]).view(pa.string())
    written.change_columns(note=texts)
    source = open_lerobot(tmp_path)
    [episode] = source.episodes(source.shards[0])
    assert episode.values["steps/note"] == [b"open", b"\xff"]
    table = pa.table({"task_index": [0, 1], "task": texts})
    pq.write_table(table, tmp_path / "meta" / "tasks.parquet")
    assert re.search(r"tasks.parquet: .* can be read; found 'utf-8' codec", faults(tmp_path)[0])


def test_depth_in_a_video_of_8_bits_is_refused(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path, lengths=(2,))
    code = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5}
    written.change_feature(CAMERA, shape=[*SIZE, 1], info={"is_depth_map": True, **code})
    message = r"step 0: expected depth in codes of 12 bits; found the pixel format yuv420p"
    assert re.search(message, faults(tmp_path)[0])


def test_one_video_that_is_cut_leaves_the_other_episodes(tmp_path: pathlib.Path) -> None:
    written = write_set(tmp_path)
    _cut(written.videos[0])
    source = open_lerobot(tmp_path)
    values = [e.values for shard in source.shards for e in source.episodes(shard)]
    assert [isinstance(value, dict) for value in values] == [False, True, True]


def test_a_file_that_is_no_json_lines_is_refused(tmp_path: pathlib.Path) -> None:
    write_set(tmp_path, "2.0")
    path = tmp_path / "meta" / "tasks.jsonl"
    path.write_text(json.dumps(["open the drawer"]))
    assert "tasks.jsonl, line 1: expected a JSON object in each line" in faults(tmp_path)[0]
