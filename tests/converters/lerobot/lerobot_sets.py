"""Small LeRobot sets, written as lerobot writes them."""

import dataclasses
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
SIZE = (48, 64)
CAMERA = "observation.images.top"
LENGTHS = (5, 4, 7)
TASKS = ("open the drawer", "close the drawer")
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_OWN_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_OWN_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_NUMBERS = {"observation.state": 2, "action": 3}


@dataclasses.dataclass(frozen=True)
class WrittenSet:
    """A set, and what a reader has to find in it."""

    directory: pathlib.Path
    values: dict[str, np.ndarray]
    """By feature, over all steps."""
    tasks: list[str]
    """Text of each step."""
    colours: np.ndarray
    """uint8 (t, 3): every frame has one colour."""

    @property
    def data_files(self) -> list[pathlib.Path]:
        return sorted((self.directory / "data").rglob("*.parquet"))

    @property
    def videos(self) -> list[pathlib.Path]:
        return sorted((self.directory / "videos").rglob("*.mp4"))

    def change_info(self, **changes: Any) -> None:
        """Writes other fields into meta/info.json; None takes one out."""
        path = self.directory / "meta" / "info.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    def change_feature(self, name: str, **changes: Any) -> None:
        features = json.loads((self.directory / "meta" / "info.json").read_text())["features"]
        self.change_info(features=features | {name: features.get(name, {}) | changes})

    def change_columns(self, **columns: Any) -> None:
        """Replaces columns of the first data file by arrays, or takes one out for None."""
        path = self.data_files[0]
        table = pq.read_table(path)
        for name, values in columns.items():
            if name in table.column_names:
                table = table.drop_columns([name])
            if values is not None:
                table = table.append_column(name, values)
        pq.write_table(table, path)


def write_set(
    directory: pathlib.Path,
    version: str = "3.0",
    storage: str = "video",
    codec: str = "libx264",
    lengths: Sequence[int] = LENGTHS,
) -> WrittenSet:
    """Writes a set; of version 3.0 its rows lie in two files, its frames in two others."""
    written = WrittenSet(directory, _values(lengths), _task_texts(lengths), _colours(lengths))
    table = _table(written, lengths, storage)
    bounds = np.cumsum([0, *lengths])
    if version == "3.0":
        _write_packed(written, table, bounds, storage, codec)
    else:
        _write_own(written, table, bounds, storage, codec)
    _write_info(written, version, storage, codec, bounds)
    return written


def _values(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    total = sum(lengths)
    rng = np.random.default_rng(7)
    found: dict[str, np.ndarray] = {
        name: rng.normal(size=(total, dim)).astype(np.float32) for name, dim in _NUMBERS.items()
    }
    found["next.reward"] = rng.normal(size=total).astype(np.float32)
    frame = np.concatenate([np.arange(length) for length in lengths])
    episode = np.repeat(np.arange(len(lengths)), lengths)
    found["next.done"] = np.append(frame[1:] == 0, True)
    found["timestamp"] = (frame / FPS).astype(np.float32)
    found["frame_index"], found["episode_index"] = frame, episode
    found["index"] = np.arange(total)
    # The task changes within episodes.
    found["task_index"] = (frame >= 3).astype(np.int64)
    return found


def _task_texts(lengths: Sequence[int]) -> list[str]:
    return [TASKS[index] for index in _values(lengths)["task_index"]]


def _colours(lengths: Sequence[int]) -> np.ndarray:
    steps = np.arange(sum(lengths))
    return np.stack([20 + 12 * steps, 220 - 10 * steps, 40 + 5 * steps], axis=1).astype(np.uint8)


def _table(written: WrittenSet, lengths: Sequence[int], storage: str) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, values in written.values.items():
        columns[name] = pa.array(values.ravel())
        if values.ndim > 1:
            columns[name] = pa.FixedSizeListArray.from_arrays(columns[name], values.shape[1])
    columns["note"] = pa.array([f"step {step}" for step in range(sum(lengths))])
    if storage == "image":
        images = [{"bytes": png(colour), "path": "frame.png"} for colour in written.colours]
        columns[CAMERA] = pa.array(images)
    return pa.table(columns)


def png(colour: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.broadcast_to(colour, (*SIZE, 3)).copy()).save(file, format="PNG")
    return file.getvalue()


def write_video(path: pathlib.Path, frames: np.ndarray, codec: str = "libx264") -> None:
    """Writes uint8 (t, h, w, 3), with a key frame every fourth and frames out of order between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 4
        stream.options = {"crf": "10"} if codec == "libx264" else {"qscale": "1"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_depth(path: pathlib.Path, codes: np.ndarray) -> None:
    """Writes uint16 (t, h, w) of 12 bits without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.height, stream.width = codes.shape[1:]
        stream.pix_fmt = "gray12le"
        for plane in codes:
            frame = av.VideoFrame(plane.shape[1], plane.shape[0], "gray12le")
            padded = np.zeros((plane.shape[0], frame.planes[0].line_size // 2), np.uint16)
            padded[:, : plane.shape[1]] = plane
            frame.planes[0].update(padded.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _frames(written: WrittenSet, start: int, stop: int) -> np.ndarray:
    colours = written.colours[start:stop, None, None]
    return np.broadcast_to(colours, (stop - start, *SIZE, 3)).copy()


def _write_packed(
    written: WrittenSet, table: pa.Table, bounds: np.ndarray, storage: str, codec: str
) -> None:
    num_episodes = len(bounds) - 1
    # The last episode has a data file of its own; of the videos, the first.
    data_file = [int(index == num_episodes - 1 > 0) for index in range(num_episodes)]
    video_file = [int(index > 0) for index in range(num_episodes)]
    rows = []
    for index in range(num_episodes):
        start, stop = int(bounds[index]), int(bounds[index + 1])
        row: dict[str, Any] = {"episode_index": index, "length": stop - start}
        row |= {"tasks": list(TASKS), "dataset_from_index": start, "dataset_to_index": stop}
        row |= {"data/chunk_index": 0, "data/file_index": data_file[index]}
        if storage == "video":
            first = int(bounds[video_file.index(video_file[index])])
            row |= {f"videos/{CAMERA}/chunk_index": 0}
            row |= {f"videos/{CAMERA}/file_index": video_file[index]}
            row |= {f"videos/{CAMERA}/from_timestamp": (start - first) / FPS}
            row |= {f"videos/{CAMERA}/to_timestamp": (stop - first) / FPS}
        rows.append(row)
    for file in sorted(set(data_file)):
        path = written.directory / _DATA.format(chunk_index=0, file_index=file)
        _write_rows(path, table, bounds, [i for i in range(num_episodes) if data_file[i] == file])
    for file in sorted(set(video_file)) if storage == "video" else []:
        path = _VIDEOS.format(video_key=CAMERA, chunk_index=0, file_index=file)
        inside = [i for i in range(num_episodes) if video_file[i] == file]
        frames = _frames(written, int(bounds[inside[0]]), int(bounds[inside[-1] + 1]))
        write_video(written.directory / path, frames, codec)
    meta = written.directory / "meta"
    (meta / "episodes" / "chunk-000").mkdir(parents=True)
    episodes = meta / "episodes" / "chunk-000" / "file-000.parquet"
    pq.write_table(pa.Table.from_pylist(rows), episodes)
    tasks = {"task_index": list(range(len(TASKS))), "task": list(TASKS)}
    pq.write_table(pa.table(tasks), meta / "tasks.parquet")


def _write_rows(
    path: pathlib.Path, table: pa.Table, bounds: np.ndarray, episodes: Sequence[int]
) -> None:
    """Writes the rows of episodes, each as a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, table.schema) as writer:
        for index in episodes:
            start, stop = int(bounds[index]), int(bounds[index + 1])
            writer.write_table(table.slice(start, stop - start))


def _write_own(
    written: WrittenSet, table: pa.Table, bounds: np.ndarray, storage: str, codec: str
) -> None:
    """Each episode in files of its own, two to a folder."""
    meta = written.directory / "meta"
    meta.mkdir(parents=True)
    lines = []
    for index in range(len(bounds) - 1):
        start, stop = int(bounds[index]), int(bounds[index + 1])
        place = {"episode_index": index, "episode_chunk": index // 2, "video_key": CAMERA}
        _write_rows(written.directory / _OWN_DATA.format(**place), table, bounds, [index])
        if storage == "video":
            path = written.directory / _OWN_VIDEO.format(**place)
            write_video(path, _frames(written, start, stop), codec)
        lines.append({"episode_index": index, "tasks": list(TASKS), "length": stop - start})
    _write_lines(meta / "episodes.jsonl", lines)
    tasks = [{"task_index": index, "task": text} for index, text in enumerate(TASKS)]
    _write_lines(meta / "tasks.jsonl", tasks)


def _write_lines(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _write_info(
    written: WrittenSet, version: str, storage: str, codec: str, bounds: np.ndarray
) -> None:
    features: dict[str, Any] = {
        name: {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1], "names": None}
        for name, values in written.values.items()
    }
    features["observation.state"]["names"] = ["x_m", "y_m"]
    features["action"]["names"] = {"motors": ["dx", "dy", "gripper"]}
    features["note"] = {"dtype": "string", "shape": [1], "names": None}
    names = ["height", "width", "channels"]
    features[CAMERA] = {"dtype": storage, "shape": [*SIZE, 3], "names": names}
    if storage == "video":
        features[CAMERA]["info"] = {"video.codec": codec, "video.pix_fmt": "yuv420p"}
    packed = version == "3.0"
    info = {
        "codebase_version": f"v{version}",
        "robot_type": "panda",
        "fps": FPS,
        "features": features,
        "total_episodes": len(bounds) - 1,
        "total_frames": int(bounds[-1]),
        "chunks_size": 1000 if packed else 2,
        "data_path": _DATA if packed else _OWN_DATA,
        "video_path": (_VIDEOS if packed else _OWN_VIDEO) if storage == "video" else None,
    }
    (written.directory / "meta" / "info.json").write_text(json.dumps(info))
