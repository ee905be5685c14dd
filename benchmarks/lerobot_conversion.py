"""What converting LeRobot videos costs, beside decoding them, and decoding and encoding them.

    python -m benchmarks.lerobot_conversion SRC [--rounds 3]

Three ways take turns in one process, each after one time that is not counted: PyAV decodes every
frame of every camera; the same, and each frame becomes RGB and a JPEG; the whole conversion, by the
mapping that `--describe` proposes. CPU time of one worker. The last lines extrapolate to LIBERO:
273,465 steps of two cameras, on two cores.
"""

import dataclasses
import pathlib
import resource
import statistics
import tempfile
from collections.abc import Callable, Iterator

import av
import simplejpeg
import tyro
from etils import epath

from benchmarks import measuring
from converters.job.convert import convert
from converters.lerobot.lerobot_source import LeRobotSource, open_lerobot
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.mapping.standardize import SourceMapping
from converters.sources.image_encoding import IMAGE_QUALITY
from pipeline.errors import UserError, user_errors_exit
from pipeline.memory import keep_freed_memory

_LIBERO_FRAMES = 273_465 * 2
_CORES = 2


@dataclasses.dataclass(frozen=True)
class Args:
    """Measures the conversion of a LeRobot dataset of RGB videos by one worker."""

    src: tyro.conf.Positional[str]
    """LeRobot directory."""
    rounds: int = 3
    """Times that each way is measured."""
    directory: pathlib.Path | None = None
    """Where it writes; a file system in memory, such as /dev/shm, keeps the disk's noise out."""


def main() -> None:
    """Parses the command line and prints one JSON object."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.lerobot_conversion", use_underscores=True)
        keep_freed_memory()  # as the command line does
        measuring.print_figures(_measured(open_lerobot(args.src), args))


def _measured(source: LeRobotSource, args: Args) -> dict[str, str | float]:
    paths = sorted({path for shard in source.shards for path in shard.paths if _is_video(path)})
    num_frames = sum(1 for path in paths for _ in _frames(path))
    if not num_frames:
        raise UserError(
            where=str(source.directory),
            expected="a dataset with videos",
            found="none",
            remedy="Name another one.",
        )
    with tempfile.TemporaryDirectory(dir=args.directory) as parent:
        mapping = _proposed(source, pathlib.Path(parent))
        ways: dict[str, Callable[[], object]] = {
            "decode": lambda: [None for path in paths for _ in _frames(path)],
            "decode_encode": lambda: [_encoded(frame) for path in paths for frame in _frames(path)],
            "convert": lambda: _convert(source, mapping, pathlib.Path(parent)),
        }
        # In turns, so that a load on the machine meets all of them.
        seconds = [{name: _seconds(way) for name, way in ways.items()} for _ in range(args.rounds)]
    cpu = {name: statistics.median(one[name][0] for one in seconds) for name in ways}
    wall = statistics.median(one["convert"][1] for one in seconds)
    return {
        "source": source.name,
        "frames": num_frames,
        **{f"{name}_cpu_ms_per_frame": round(cpu[name] / num_frames * 1e3, 3) for name in ways},
        "convert_frames_per_s": round(num_frames / wall),
        "ratio_to_decode_encode": round(cpu["convert"] / cpu["decode_encode"], 2),
        "libero_minutes_on_two_cores": round(
            cpu["convert"] / num_frames * _LIBERO_FRAMES / _CORES / 60, 1
        ),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def _is_video(path: epath.Path) -> bool:
    return path.suffix == ".mp4"


def _proposed(source: LeRobotSource, directory: pathlib.Path) -> SourceMapping:
    path = directory / "mapping.toml"
    path.write_text(describe(source))
    return read_mapping(path)


def _frames(path: epath.Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1  # as the workers of a conversion
        yield from container.decode(stream)


def _encoded(frame: av.VideoFrame) -> int:
    pixels = frame.to_ndarray(format="rgb24")
    return len(simplejpeg.encode_jpeg(pixels, IMAGE_QUALITY, colorsubsampling="420"))


def _convert(source: LeRobotSource, mapping: SourceMapping, parent: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        convert(source, pathlib.Path(directory) / "out", mapping)


def _seconds(way: Callable[[], object]) -> tuple[float, float]:
    """(CPU, wall) seconds of a way, once it has been gone."""
    way()
    return measuring.timed(way)[1:]


if __name__ == "__main__":
    main()
