"""`octograin inspect DST`: shows a dataset directory as text, JSON or a figure."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic_core
import tyro
from rich.console import Console

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, temporary_path
from pipeline.flag_help import joined_help
from pipeline.inspection.dataset_summary import summarize, summarize_episode
from pipeline.inspection.summary_tables import to_text
from pipeline.terminal import program

_PLAIN_WIDTH = 120
"""Width of a line, in characters, if stdout is no terminal."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Shows the contents of a dataset directory as tables, JSON or a figure."""

    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Dataset directory: the folder with dataset.json."""
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
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and prints."""
    with user_errors_exit():
        _inspect(tyro.cli(joined_help(Args), prog=program("pipeline.inspection")))


def to_json(summary: Mapping[str, Any]) -> str:
    """Formats a summary as one JSON object; NaN and infinity are null."""
    return dump_json(json.loads(pydantic_core.to_json(summary, inf_nan_mode="null")))


def _inspect(args: Args) -> None:
    if args.plot is not None:
        # Before anything is read, so that a slow command does not fail at its end.
        _check_target(args.plot)
    dataset = open_dataset(args.dst)
    if args.episode is None:
        summary = summarize(dataset)
    else:
        summary = summarize_episode(dataset, args.episode)
    # Drawn before anything is printed: an error must not follow half an answer.
    if args.plot is not None:
        from pipeline.inspection.dataset_figure import draw_figure  # noqa: PLC0415  (0.5 s)

        _write(args.plot, draw_figure(dataset, args.episode))
    is_terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=is_terminal,
        width=None if is_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    sys.stdout.write(to_json(summary) if args.json else to_text(summary, console))
    if args.plot is not None:
        # On stderr, so that stdout stays JSON.
        sys.stderr.write(f"figure: {args.plot}\n")


def _check_target(target: pathlib.Path) -> None:
    is_png = target.suffix.lower() == ".png"
    if not is_png or not target.parent.is_dir():
        raise UserError(
            where=f"--plot {target}",
            expected="a file that ends in .png, in a folder that exists",
            found=f"no folder {target.parent}" if is_png else target.suffix or "no suffix",
            remedy="Name a file such as out.png in a folder of yours.",
        )


def _write(target: pathlib.Path, data: bytes) -> None:
    """Writes a file atomically."""
    temporary = temporary_path(target)
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            where=f"--plot {target}",
            expected="a file that can be written",
            found=str(error),
            remedy="Name a file such as out.png in a folder of yours with space left.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
