"""`octograin push DIR hf://datasets/owner/name`: puts a dataset on the hub."""

import dataclasses
from typing import Annotated

import tyro

from pipeline.errors import user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.hub.hub_push import parse_branch
from pipeline.sharing.push import push
from pipeline.terminal import log_to_stderr, program, show


@dataclasses.dataclass(frozen=True)
class Args:
    """Puts a dataset directory on the Hugging Face hub in one commit, with a card.

    The card, README.md, lists features, conventions, licences and instructions beside a figure. Log
    in before with `hf auth login`, or set HF_TOKEN to a token that may write. An upload that was
    ended resumes when the same command is run again.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Dataset directory: the folder with dataset.json."""
    address: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADDRESS")]
    """hf://datasets/owner/name, with @ and a branch behind it for one that is not the default."""
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make a private repository; one that exists has to be private already."""
    replace_columns: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take columns that DIR lacks out of the repository; earlier commits keep them."""
    replace_card: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a README.md that was written or changed by hand."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and pushes."""
    with user_errors_exit(interrupted="interrupted; the same command resumes"):
        args = tyro.cli(
            joined_help(Args), prog=program("pipeline.sharing.push_command"), use_underscores=True
        )
        log_to_stderr()
        pushed = push(
            args.src,
            parse_branch(args.address, is_dataset=True),
            is_private=args.private,
            replace_columns=args.replace_columns,
            replace_card=args.replace_card,
        )
        show(pushed.describe(args.src, is_private=args.private))


if __name__ == "__main__":
    main()
