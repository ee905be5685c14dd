"""`octograin inspect DST`: shows a dataset directory as text, JSON or a figure."""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated

import pydantic
import tyro
from rich.console import Console

from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import dump_json, temporary_path
from pipeline.flag_help import joined_help
from pipeline.inspection.dataset_summary import Summary, summarize
from pipeline.inspection.episode_summary import EpisodeSummary, summarize_episode
from pipeline.inspection.figure_contents import read_figure
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


def to_json(summary: Summary | EpisodeSummary) -> str:
    """Formats a summary as one JSON object with its fields as keys; NaN and infinity are null."""
    values = pydantic.TypeAdapter(type(summary)).dump_json(summary)
    return dump_json(json.loads(values))


def main() -> None:
    """Parses the command line and prints."""
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("pipeline.inspection"))
        _inspect(args)


def _inspect(args: Args) -> None:
    if args.plot is not None:
        _check_target(args.plot)
    dataset = open_dataset(args.dst)
    if args.episode is None:
        summary = summarize(dataset)
    else:
        summary = summarize_episode(dataset, args.episode)
    # Drawn before anything is printed: an error must not follow half an answer.
    if args.plot is not None:
        _plot(dataset, args.episode, args.plot)
    sys.stdout.write(to_json(summary) if args.json else to_text(summary, _console()))
    if args.plot is not None:
        # On stderr, so that stdout stays JSON.
        sys.stderr.write(f"figure: {args.plot}\n")


def _check_target(target: pathlib.Path) -> None:
    """Checks the path before anything is read, so that a slow command does not fail at its end."""
    is_png = target.suffix.lower() == ".png"
    if not is_png or not target.parent.is_dir():
        raise UserError(
            where=f"--plot {target}",
            expected="a file that ends in .png, in a folder that exists",
            found=f"no folder {target.parent}" if is_png else target.suffix or "no suffix",
            remedy="Name a file such as out.png in a folder of yours.",
        )


def _plot(dataset: Dataset, episode: int | None, target: pathlib.Path) -> None:
    """Writes the figure atomically."""
    from pipeline.inspection.figure import draw_figure  # noqa: PLC0415  (matplotlib takes 0.5 s)

    data = draw_figure(read_figure(dataset, episode))
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


def _console() -> Console:
    """Returns a console for the terminal, or for plain text of a fixed width."""
    is_terminal = sys.stdout.isatty()
    return Console(
        force_terminal=is_terminal,
        width=None if is_terminal else _PLAIN_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )


if __name__ == "__main__":
    main()
