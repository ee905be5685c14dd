"""`octograin export DST [OUT] --to lerobot`: a dataset directory becomes a LeRobot 3.0 dataset."""

import dataclasses
import importlib
import pathlib
import shlex
import time
from typing import Annotated, Literal

import tyro

from converters.export.lerobot.lerobot_columns import exported_schema, text_name
from converters.export.lerobot.return_mapping import failed_lines
from converters.job import job_progress
from pipeline.data.dataset import Dataset, excluded_note, open_dataset
from pipeline.errors import UserError, install_extra, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.memory import keep_freed_memory
from pipeline.terminal import program, show

_MB = 1e6


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a dataset directory as a LeRobot 3.0 dataset, which LeRobot's own loader reads."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory, or hf://datasets/owner/name[@revision], which is fetched."""
    out: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[OUT]", help_behavior_hint="")
    ] = None
    """Folder to write; by default DST with `_lerobot` added."""
    to: Literal["lerobot"] = "lerobot"
    """Format."""
    video: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="(default)")
    ] = False
    """Store cameras as videos, as LeRobot does: small, with a loss of a few grey levels."""
    image: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = (
        False
    )
    """Store cameras as images in the data files: every JPEG and PNG is kept."""
    codec: Annotated[
        Literal["av1", "h264"] | None,
        tyro.conf.arg(metavar="{av1,h264}", help_behavior_hint="(default: av1)"),
    ] = None
    """Codec of the videos."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an export that stands at OUT."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and runs the export."""
    keep_freed_memory()
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("converters.export.lerobot_export"))
        if args.video and args.image:
            raise UserError(
                where="--video --image",
                expected="one of them",
                found="both",
                remedy="Cameras are stored in one way: leave one out.",
            )
        if args.image and args.codec:
            raise UserError(
                where="--image --codec",
                expected="a codec for videos alone",
                found=f"--codec {args.codec}",
                remedy="Images keep their bytes: leave one out.",
            )
        try:
            writer = importlib.import_module("converters.export.lerobot.lerobot_writer")
        except ImportError as error:
            raise UserError(
                where="--to lerobot",
                expected="the packages that write LeRobot datasets",
                found=str(error),
                remedy=f"{install_extra('lerobot')}.",
            ) from error
        dataset = open_dataset(args.dst)
        started = time.perf_counter()
        storage = "image" if args.image else "video"
        num_episodes = len(dataset.kept_episodes)
        with job_progress.shown(dataset.manifest.name, num_episodes) as on_progress:
            folder = writer.export_lerobot(
                dataset,
                args.out,
                storage=storage,
                codec=args.codec or "av1",
                overwrite=args.overwrite,
                on_progress=on_progress,
            )
        seconds = time.perf_counter() - started
        show(_summary(dataset, folder, storage, seconds))


def _summary(
    dataset: Dataset, folder: pathlib.Path, storage: Literal["video", "image"], seconds: float
) -> str:
    """What was written, what was not, and how it is read."""
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    schema = exported_schema(dataset.manifest, storage)
    lines = [
        f"{len(dataset.kept_episodes):,} episodes, {dataset.num_kept_steps:,} steps, "
        f"{num_bytes / _MB:,.1f} MB in {seconds:,.1f} s{excluded_note(dataset.manifest)}",
        f"LeRobot 3.0: {folder}",
    ]
    names = {one.feature.key: one.name for one in schema.features}
    names |= {text.key: f"{text_name(text)} of meta/episodes" for text in schema.texts}
    width = max(map(len, names), default=0)
    lines += [f"  {key:{width}}  {name}" for key, name in names.items()]
    if schema.left_out:
        lines.append(f"not exported, as LeRobot has no tokens: {', '.join(schema.left_out)}")
    lines += [
        f'with LeRobot: LeRobotDataset("local/{folder.name}", root="{folder}")',
        f"back: octograin convert {shlex.quote(str(folder))} DST",
        *(f"      {line}" for line in failed_lines(dataset.manifest)),
    ]
    return "\n".join(lines) + "\n"
