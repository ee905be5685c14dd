"""Where each episode of a LeRobot dataset lies: its rows, and its part of each video."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

import pyarrow as pa
from etils import epath

from converters.lerobot.lerobot_features import EPISODE_TEXTS
from converters.lerobot.lerobot_info import LeRobotInfo
from converters.lerobot.parquet_rows import read_columns, schema_of
from converters.lerobot.task_texts import json_lines
from pipeline.errors import DataError
from pipeline.files import matching

_FETCH = "Fetch the folder meta/ again."
_HALF = 0.5


@dataclasses.dataclass(frozen=True)
class EpisodePlace:
    """The parts of files that hold one episode."""

    index: int
    """Its number in the dataset."""
    length: int
    """Its steps."""
    data: str
    """Its data file, below the directory."""
    first_row: int
    """Its first row there."""
    videos: Mapping[str, tuple[str, float]]
    """(file below the directory, time of its first frame there in s) by feature."""
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Its texts in `meta/episodes`, by source key."""

    @property
    def files(self) -> tuple[str, ...]:
        """All files that hold a part of it."""
        return (self.data, *(file for file, _ in self.videos.values()))


def read_places(
    info: LeRobotInfo, directory: epath.Path, videos: Sequence[str], texts: Sequence[str] = ()
) -> tuple[EpisodePlace, ...]:
    """The places of all episodes, in order.

    Args:
      info: Declaration of the dataset.
      directory: Its folder.
      videos: Names of the features that lie in videos.
      texts: Columns of `meta/episodes` with texts, as `episode_texts` finds them.

    Raises:
      DataError: The list of episodes is missing or corrupt, or disagrees with the declaration.
    """
    if info.is_packed:
        places = _packed_places(info, directory, videos, texts)
        source = directory / "meta" / "episodes"
    else:
        source = directory / "meta" / "episodes.jsonl"
        places = [_own_place(info, row, where, videos) for where, row in json_lines(source, _FETCH)]
    places = sorted(places, key=lambda place: place.index)
    _check_totals(info, places, str(source))
    return tuple(places)


def _check_totals(info: LeRobotInfo, places: Sequence[EpisodePlace], where: str) -> None:
    num_frames = sum(place.length for place in places)
    indices = [place.index for place in places]
    if indices != list(range(len(places))):
        missing = sorted(set(range(len(places))) - set(indices))
        expected, found = f"episodes 0 to {len(places) - 1}", f"no episode {missing[0]}"
    elif not places or len(places) != info.total_episodes:
        expected = f"{info.total_episodes} episodes, as total_episodes of {info.path.name} says"
        found = f"{len(places)}"
    elif num_frames != info.total_frames:
        expected = f"{info.total_frames} steps in all, as total_frames of {info.path.name} says"
        found = f"{num_frames}"
    else:
        return
    raise DataError(
        where=where,
        expected=expected,
        found=found,
        remedy="The files of meta/ are of different versions: fetch all of them again.",
    )


def _own_place(
    info: LeRobotInfo, row: Mapping[str, Any], where: str, videos: Sequence[str]
) -> EpisodePlace:
    """The place of an episode that has files of its own, up to version 2.1."""
    index, length = row.get("episode_index"), row.get("length")
    if type(index) is not int or type(length) is not int or index < 0:
        raise DataError(
            where=where,
            expected="an episode_index and a length",
            found=f"{index!r} and {length!r}",
            remedy=_FETCH,
        )
    fields = {"episode_index": index, "episode_chunk": index // info.chunks_size}
    data = info.path_of(info.data_path, **fields)
    files = {name: info.path_of(info.video_path, video_key=name, **fields) for name in videos}
    starts = {name: (file, 0.0) for name, file in files.items()}
    return EpisodePlace(index, length, data, 0, starts)


# --- from version 3.0 on


def episode_texts(info: LeRobotInfo, directory: epath.Path) -> tuple[str, ...]:
    """The columns of `meta/episodes` that are texts of an episode, in any of its files.

    LeRobot leaves them out of the files of episodes that it adds, whose texts are then empty.

    Raises:
      DataError: A file of the list of episodes is corrupt.
    """
    paths = _episode_files(directory) if info.is_packed else []
    return tuple(sorted({name for path in paths for name in _texts_in(path)}))


def _texts_in(path: epath.Path) -> list[str]:
    """The columns of one file that are texts of an episode."""
    schema = schema_of(path)
    named = [name for name in schema.names if name.startswith(EPISODE_TEXTS)]
    return [name for name in named if pa.types.is_string(schema.field(name).type)]


def _episode_files(directory: epath.Path) -> list[epath.Path]:
    return matching(directory / "meta" / "episodes", "*/*.parquet")


def _packed_places(
    info: LeRobotInfo, directory: epath.Path, videos: Sequence[str], texts: Sequence[str]
) -> list[EpisodePlace]:
    """The places of episodes that share files."""
    rows = list(_episode_rows(directory, videos, texts))
    data = [_data_file(info, row) for _, row in rows]
    # A file begins with its first episode, whose index counts over all files.
    first_index: dict[str, int] = {}
    for file, (_, row) in zip(data, rows, strict=True):
        start = row["dataset_from_index"]
        first_index[file] = min(first_index.get(file, start), start)
    return [
        EpisodePlace(
            index=row["episode_index"],
            length=_length(info, row, where, videos),
            data=file,
            first_row=row["dataset_from_index"] - first_index[file],
            videos={name: _video(info, row, name) for name in videos},
            texts={name: row[name] for name in texts},
        )
        for file, (where, row) in zip(data, rows, strict=True)
    ]


def _episode_rows(
    directory: epath.Path, videos: Sequence[str], texts: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the (place, row) of each episode, without the statistics, which fill the files."""
    paths = _episode_files(directory)
    if not paths:
        raise DataError(
            where=str(directory / "meta" / "episodes"),
            expected="the list of episodes in chunk-000/file-000.parquet",
            found="no such file",
            remedy=_FETCH,
        )
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += ["dataset_from_index", "dataset_to_index"]
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    columns += [f"videos/{name}/{part}" for name in videos for part in parts]
    for path in paths:
        own_texts = _texts_in(path) if texts else []
        for stored in read_columns(path, [*columns, *own_texts]).to_pylist():
            row = stored | {name: stored.get(name) or "" for name in texts}
            where = f"{path}, episode {row['episode_index']}"
            wrong = [name for name, value in row.items() if not isinstance(value, _type(name))]
            if wrong:
                raise DataError(
                    where=where,
                    expected=f"a number in {', '.join(wrong)}",
                    found=", ".join(repr(row[name]) for name in wrong),
                    remedy=_FETCH,
                )
            yield where, row


def _type(column: str) -> type | UnionType:
    """Type of the values of a column: times may be whole numbers."""
    if column.startswith(EPISODE_TEXTS):
        return str
    return int | float if column.endswith("_timestamp") else int


def _data_file(info: LeRobotInfo, row: Mapping[str, Any]) -> str:
    return info.path_of(
        info.data_path, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]
    )


def _video(info: LeRobotInfo, row: Mapping[str, Any], name: str) -> tuple[str, float]:
    file = info.path_of(
        info.video_path,
        video_key=name,
        chunk_index=row[f"videos/{name}/chunk_index"],
        file_index=row[f"videos/{name}/file_index"],
    )
    return file, float(row[f"videos/{name}/from_timestamp"])


def _length(info: LeRobotInfo, row: Mapping[str, Any], where: str, videos: Sequence[str]) -> int:
    """The length of an episode, by which its rows and its videos agree."""
    length = row["length"]
    spans = {"rows": row["dataset_to_index"] - row["dataset_from_index"]}
    for name in videos:
        start, stop = (row[f"videos/{name}/{end}_timestamp"] for end in ("from", "to"))
        spans[f"frames of {name}"] = (stop - start) * info.fps
    # Times are sums of 1 / fps, rounded.
    wrong = [f"{span:g} {what}" for what, span in spans.items() if abs(span - length) > _HALF]
    if wrong:
        raise DataError(
            where=where,
            expected=f"{length} rows, and frames at {info.fps:g} fps, as its length says",
            found=", ".join(wrong),
            remedy="Correct fps in meta/info.json, or fetch the folder meta/ again.",
        )
    return length
