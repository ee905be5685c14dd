"""`python -m train.report RUN`: writes the page of a run anew, of what its directory holds now."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from pipeline.errors import user_errors_exit
from pipeline.terminal import show
from train.report.page import write_report


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes RUN/report.html: how a run learned, how well, and of what it is made."""

    run: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, writes, and prints the page's path."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m train.report")
        show(f"{write_report(args.run)}\n")


if __name__ == "__main__":
    main()
