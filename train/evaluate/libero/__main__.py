"""`python -m train.evaluate.libero`: checks that the LIBERO simulator is installed and renders."""

import dataclasses
from typing import Annotated

import tyro

from pipeline.errors import user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.terminal import program, show
from train.evaluate.libero.installation import find_installation
from train.evaluate.libero.suites import MAX_STEPS, read_tasks


@dataclasses.dataclass(frozen=True)
class Args:
    """Checks the LIBERO simulator: packages, versions, assets and rendering."""

    assets: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of LIBERO's assets; by default LIBERO_ASSETS, the package's own folder, or
    ~/.cache/libero/assets."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and prints what was found."""
    with user_errors_exit():
        args = tyro.cli(joined_help(Args), prog=program("train.evaluate.libero"))
        installation = find_installation(args.assets)
        suites = {suite: len(read_tasks(installation.root, suite)) for suite in MAX_STEPS}
        show(
            f"simulator: {installation}\n"
            f"assets: {installation.assets}\n"
            f"tasks: {', '.join(f'{suite} {count}' for suite, count in suites.items())}\n"
        )


if __name__ == "__main__":
    main()
