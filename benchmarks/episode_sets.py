"""Writes datasets of very many episodes: real ones of two steps, or a manifest without records.

    python -m benchmarks.episode_sets DST --num_episodes 1000000
    python -m benchmarks.episode_sets DST --num_episodes 1000000 --num_steps 225000000

The first writes shards of 10,000 episodes through the project's own writers: a step has an action
and a PNG of 8x8 pixels, and each record about 100 bytes. The second writes the manifest of
episodes of random lengths; its shards are empty files of the declared sizes, which take no room on
the disk and can be opened, but not read. Instructions are a tenth of the episodes, at most 100,000.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tyro
from etils import epath
from PIL import Image

from pipeline.data.action_hashes import hash_actions, to_texts
from pipeline.data.conventions import Conventions
from pipeline.data.dataset_writer import ShardWriter, write_manifest
from pipeline.data.manifest import FORMAT_VERSION, Manifest, Shard
from pipeline.data.record import RecordLayout
from pipeline.data.schema import ACTION, EPISODES, Column, Feature, Schema
from pipeline.data.statistics import Accumulator, FeatureStatistics
from pipeline.errors import user_errors_exit

STEPS = "steps"
_IMAGE = "observation/image_primary"
_DIMS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_SCHEMA = Schema(
    (
        Column(
            EPISODES,
            "episode",
            (Feature(ACTION, "tensor", (7,), "float32", "float32", "steps/action", dims=_DIMS),),
        ),
        Column(STEPS, "step", (Feature(_IMAGE, "image", (8, 8, 3), "uint8", "uint8", "steps/i"),)),
    )
)
_CONVENTIONS = Conventions("upright", "euler_xyz", control_frequency_hz=10.0, no_ops="kept")
_STEPS_PER_EPISODE = 2
_EPISODES_PER_SHARD = 10_000
_NUM_IMAGES = 256
_MOST_TASKS = 100_000
_WORDS = (
    *("alphabet", "basket", "black", "bowl", "box", "butter", "cheese", "cookie", "cream"),
    *("drawer", "milk", "plate", "ramekin", "sauce", "soup", "stove", "table", "tomato"),
)
"""Words of the bundled vocabulary; four of them make 104,976 instructions."""
_RECORD_BYTES = 100


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a dataset of very many episodes."""

    dst: tyro.conf.Positional[pathlib.Path]
    """Directory that is made."""
    num_episodes: int = 1000
    """Episodes."""
    num_steps: int | None = None
    """Steps of all episodes, for a manifest without records; None: two of each, with records."""


def main() -> None:
    """Parses the command line and writes a dataset."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.episode_sets", use_underscores=True)
        if args.num_steps is None:
            write_episodes(args.dst, args.num_episodes)
        else:
            write_without_records(args.dst, args.num_episodes, args.num_steps)


def write_episodes(directory: pathlib.Path, num_episodes: int) -> None:
    """Writes a dataset of episodes of two steps.

    Args:
      directory: Is made.
      num_episodes: Number of episodes.
    """
    statistics = Accumulator()
    hashes: list[int] = []
    shards: dict[str, list[Shard]] = {EPISODES: [], STEPS: []}
    images = list(_images())
    rng = np.random.default_rng(0)
    sizes = _shard_sizes(num_episodes)
    for number, size in enumerate(sizes):
        actions = rng.normal(0.0, 1.0, (size, _STEPS_PER_EPISODE, len(_DIMS))).astype(np.float32)
        # One by one, as a conversion does: the order of the pieces is part of the result.
        for action in actions:
            statistics.add(action)
            hashes.append(hash_actions(action))
        names = {column: _file(column, number, len(sizes)) for column in shards}
        layouts = [RecordLayout(column) for column in _SCHEMA.columns]
        with ShardWriter(directory, names[EPISODES]) as writer:
            for index, action in enumerate(actions):
                values = {ACTION: action}
                writer.write(layouts[0].encode((number, index), _STEPS_PER_EPISODE, values))
        shards[EPISODES].append(writer.finished())
        with ShardWriter(directory, names[STEPS]) as writer:
            for index in range(size * _STEPS_PER_EPISODE):
                values = {_IMAGE: images[index % _NUM_IMAGES]}
                writer.write(layouts[1].encode((number, index), 1, values))
        shards[STEPS].append(writer.finished())
    lengths = np.full(num_episodes, _STEPS_PER_EPISODE)
    _write_manifest(directory, lengths, shards, hashes, statistics.finish())


def write_without_records(directory: pathlib.Path, num_episodes: int, num_steps: int) -> None:
    """Writes the manifest of a dataset, and empty files of the sizes of its shards.

    Args:
      directory: Is made.
      num_episodes: Number of episodes.
      num_steps: Steps of all of them together; their lengths differ by up to half.
    """
    rng = np.random.default_rng(0)
    mean = num_steps // num_episodes
    lengths = rng.integers(mean - mean // 2, mean + mean // 2 + 1, num_episodes)
    # What is missing or too much is spread over the first episodes.
    rest = num_steps - int(lengths.sum())
    lengths += rest // num_episodes
    lengths[: rest % num_episodes] += 1
    sizes = _shard_sizes(num_episodes)
    ends = np.cumsum(sizes)
    of_shard = [int(lengths[end - size : end].sum()) for size, end in zip(sizes, ends, strict=True)]
    shards = {
        column: [
            _empty_shard(directory, _file(column, number, len(sizes)), count)
            for number, count in enumerate(counts)
        ]
        for column, counts in ((EPISODES, sizes), (STEPS, of_shard))
    }
    values = rng.normal(0.0, 1.0, (1000, len(_DIMS))).astype(np.float32)
    statistics = Accumulator()
    statistics.add(values)
    found = dataclasses.replace(statistics.finish(), count=num_steps)
    hashes = rng.integers(0, 2**64, num_episodes, np.uint64).tolist()
    _write_manifest(directory, lengths, shards, hashes, found)


def _write_manifest(
    directory: pathlib.Path,
    lengths: np.ndarray,
    shards: dict[str, list[Shard]],
    hashes: list[int],
    statistics: FeatureStatistics,
) -> None:
    num_episodes = len(lengths)
    num_tasks = min(max(num_episodes // 10, 1), _MOST_TASKS)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=f"episodes_{num_episodes}",
        schema=_SCHEMA,
        schema_hash=_SCHEMA.hash(),
        shards={column: tuple(found) for column, found in shards.items()},
        episode_lengths=tuple(lengths.tolist()),
        episode_tasks=tuple((np.arange(num_episodes) % num_tasks).tolist()),
        task_changes=(),
        tasks=tuple(map(_instruction, range(num_tasks))),
        task_source="steps/language_instruction",
        removed_steps=(0,) * num_tasks,
        conventions=_CONVENTIONS,
        licences=dict.fromkeys(shards, "CC0-1.0"),
        provenance={"source": "benchmarks/episode_sets.py"},
        action_hashes=to_texts(hashes, shards[EPISODES]),
    )
    write_manifest(epath.Path(directory), manifest, {ACTION: statistics})


def _instruction(task: int) -> str:
    """Returns another instruction for each task."""
    a, b, c, d = (_WORDS[task // len(_WORDS) ** place % len(_WORDS)] for place in range(4))
    return f"pick up the {d} {c} {b} and place it on the {a}"


def _shard_sizes(num_episodes: int) -> list[int]:
    """Episodes of each shard."""
    starts = range(0, num_episodes, _EPISODES_PER_SHARD)
    return [min(_EPISODES_PER_SHARD, num_episodes - start) for start in starts]


def _file(column: str, number: int, total: int) -> str:
    return f"{column}/{number:05d}-of-{total:05d}.arrayrecord"


def _images() -> Iterator[bytes]:
    """PNG files of 8x8 pixels, each of one colour."""
    for level in range(_NUM_IMAGES):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (level, 255 - level, 128)).save(out, "PNG")
        yield out.getvalue()


def _empty_shard(directory: pathlib.Path, file: str, count: int) -> Shard:
    """Makes a file that has the size of so many records, and holds none."""
    path = directory / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        out.truncate(count * _RECORD_BYTES)
    return Shard(file, count, count * _RECORD_BYTES, "0" * 32)


if __name__ == "__main__":
    main()
