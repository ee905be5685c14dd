"""`python -m pipeline.libero`: whether the LIBERO simulator is installed, complete and renders."""

import dataclasses
import sys
from typing import Annotated

import tyro

from pipeline.errors import user_errors_exit
from pipeline.libero.installation import find_installation
from pipeline.libero.suites import MAX_STEPS, read_tasks


@dataclasses.dataclass(frozen=True)
class Args:
    """Checks the LIBERO simulator: packages, versions, assets and rendering."""

    assets: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of LIBERO's assets; by default where the package has or fetches them."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and prints what was found."""
    args = tyro.cli(Args, prog="python -m pipeline.libero")
    with user_errors_exit(debug=args.debug):
        installation = find_installation(args.assets)
        suites = {suite: len(read_tasks(installation.root, suite)) for suite in MAX_STEPS}
        sys.stdout.write(
            f"simulator: {installation}\n"
            f"assets: {installation.assets}\n"
            f"tasks: {', '.join(f'{suite} {count}' for suite, count in suites.items())}\n"
        )


if __name__ == "__main__":
    main()
