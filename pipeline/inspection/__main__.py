"""`octograin inspect DST`: shows a dataset directory as text, JSON, a figure or a recording."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import pydantic_core
import tyro
from rich.console import Console

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.schema import EPISODES
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, temporary_path
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.hub.hub_address import is_dataset_address
from pipeline.inspection.dataset_summary import summarize, summarize_episode
from pipeline.inspection.rerun_recording import Chunk, import_rerun, make_recording
from pipeline.inspection.summary_tables import to_text
from pipeline.parts.part_files import load_parts
from pipeline.terminal import program

Predict = Callable[[str, Dataset, int, int | None], Sequence[Chunk]]
"""Returns the chunks that the policy of a run predicts along an episode, by the checkpoint of a
training step; None: of the last one."""
_PLAIN_WIDTH = 120
"""Width of a line, in characters, if stdout is no terminal."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Shows the contents of a dataset directory as tables, JSON, a figure or a recording."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory, the folder with dataset.json; or hf://datasets/owner/name[@revision], of
    which only the columns that are shown are fetched."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of tables."""
    episode: Annotated[
        int | None, tyro.conf.arg(metavar="N", constructor=int, help_behavior_hint="")
    ] = None
    """Show this episode, counted from 0, instead of the whole dataset."""
    plot: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = (
        None
    )
    """PNG file to draw: camera images, and the values of actions and observations."""
    rerun: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = (
        None
    )
    """RRD file to write for Rerun's viewer: images, actions and state of the episode, by default
    the first one."""
    run: Annotated[str | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Run directory, or hf://owner/name[@revision], whose policy predicts chunks along that
    episode, beside the actions."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """With --run: training step of the checkpoint; the last one by default."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the RRD file."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and prints."""
    inspect(None)


def inspect(predict: Predict | None) -> None:
    """Parses the command line and prints.

    Args:
      predict: Predicts the chunks of --run; None: only `octograin inspect` does.
    """
    with user_errors_exit():
        _inspect(tyro.cli(joined_help(Args), prog=program("pipeline.inspection")), predict)


def to_json(summary: Mapping[str, Any]) -> str:
    """Formats a summary as one JSON object; NaN and infinity are null."""
    return dump_json(json.loads(pydantic_core.to_json(summary, inf_nan_mode="null")))


def _inspect(args: Args, predict: Predict | None) -> None:
    # Before anything is read, so that a slow command does not fail at its end.
    _check(args, predict)
    load_parts(*args.parts)
    dataset = _open(args)
    if args.episode is None:
        summary = summarize(dataset)
    else:
        summary = summarize_episode(dataset, args.episode)
    # Drawn before anything is printed: an error must not follow half an answer.
    if args.plot is not None:
        from pipeline.inspection.dataset_figure import draw_figure  # noqa: PLC0415  (0.5 s)

        _write("--plot", args.plot, draw_figure(dataset, args.episode))
    if args.rerun is not None:
        episode = args.episode or 0
        chunks = predict(args.run, dataset, episode, args.step) if args.run and predict else ()
        _write("--rerun", args.rerun, make_recording(dataset, episode, chunks))
    is_terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=is_terminal,
        width=None if is_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    sys.stdout.write(to_json(summary) if args.json else to_text(summary, console))
    # On stderr, so that stdout stays JSON.
    if args.plot is not None:
        sys.stderr.write(f"figure: {args.plot}\n")
    if args.rerun is not None:
        sys.stderr.write(f"recording: {args.rerun}; open it with: rerun {args.rerun}\n")


def _open(args: Args) -> Dataset:
    """Opens the dataset; of one on the hub only the columns that are shown are fetched."""
    if not is_dataset_address(args.dst) or args.run is not None:
        return open_dataset(args.dst)
    # No feature: the episodes alone. Its manifest lists all columns.
    dataset = open_dataset(args.dst, [])
    kinds = ("depth",) if args.plot is None and args.rerun is None else ("depth", "image")
    shown = [
        feature.key
        for column, feature in dataset.manifest.schema.features()
        if column.name == EPISODES or feature.kind in kinds
    ]
    return open_dataset(dataset.path, shown)


def _check(args: Args, predict: Predict | None) -> None:
    """Checks the flags that name files, and that a recording can be made."""
    if args.plot is not None:
        _check_target("--plot", args.plot, ".png")
    if args.rerun is not None:
        _check_target("--rerun", args.rerun, ".rrd")
        is_folder = args.rerun.is_dir()
        if is_folder or (args.rerun.exists() and not args.overwrite):
            raise UserError(
                where=f"--rerun {args.rerun}",
                expected="a file that does not exist yet",
                found="a folder" if is_folder else "a file",
                remedy="Name another one."
                if is_folder
                else "Replace it with --overwrite, or name another one.",
            )
        import_rerun()
    if args.run is not None and (args.rerun is None or predict is None):
        raise UserError(
            where=f"--run {args.run}",
            expected="`octograin inspect DST --rerun FILE`, which shows what the run predicts",
            found="no --rerun" if args.rerun is None else "another command",
            remedy="Add --rerun FILE." if args.rerun is None else "Use `octograin inspect`.",
        )
    if args.step is not None and args.run is None:
        raise UserError(
            where=f"--step {args.step}",
            expected="--run RUN, whose checkpoint it chooses",
            found="no --run",
            remedy="Add --run RUN and --rerun FILE. An episode is chosen by --episode.",
        )


def _check_target(flag: str, target: pathlib.Path, suffix: str) -> None:
    has_suffix = target.suffix.lower() == suffix
    if not has_suffix or not target.parent.is_dir():
        raise UserError(
            where=f"{flag} {target}",
            expected=f"a file that ends in {suffix}, in a folder that exists",
            found=f"no folder {target.parent}" if has_suffix else target.suffix or "no suffix",
            remedy=f"Name a file such as out{suffix} in a folder of yours.",
        )


def _write(flag: str, target: pathlib.Path, data: bytes) -> None:
    """Writes a file atomically."""
    temporary = temporary_path(target)
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            where=f"{flag} {target}",
            expected="a file that can be written",
            found=str(error),
            remedy=f"Name a file such as out{target.suffix} in a folder of yours with space left.",
        ) from error
    finally:
        # A read-only file system refuses to remove even a file that is not there.
        if temporary.exists():
            temporary.unlink()


if __name__ == "__main__":
    main()
