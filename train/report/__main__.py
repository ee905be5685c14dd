"""`octograin report RUN`: writes the page of a run from its directory.

If a complete run lacks its last validation or the chunks of an episode, they are computed first,
from its last checkpoint.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help, part_flags
from pipeline.hub.hub_address import SCHEME
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program, show
from train.checkpoints.run_directory import read_config
from train.end_of_run import make_up
from train.report.report_inputs import check_is_run
from train.report.report_page import write_report
from train.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes RUN/report.html: how a run learned, how well it does, and its inputs.

    If a complete run lacks its last validation or the chunks of an episode, they are computed from
    its last checkpoint and its data. The run's --config flags then change its config, such as
    --config.data.datasets.0.path for data that was moved.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


@dataclasses.dataclass(frozen=True)
class _Changes:
    """The flags that change the config of the run."""

    config: Annotated[TrainConfig, tyro.conf.FlagConversionOff]
    """Config in the run's last checkpoint."""


def main() -> None:
    """Parses the command line, writes the page and prints its path."""
    log_to_stderr()
    prog = program("train.report")
    with user_errors_exit():
        args, changes = tyro.cli(joined_help(Args), prog=prog, return_unknown_args=True)
        if changes and not changes[0].startswith("--config."):
            raise UserError(
                where="command line",
                expected="RUN and --config flags",
                found=changes[0],
                remedy=f"See `{prog} --help`.",
            )
        load_parts(*args.parts)
        _check_is_local(args.run)
        # Before anything is written into it: an exported policy has no record of a training.
        check_is_run(args.run)
        # Also where nothing is made up, so that a mistake in a flag is never silent.
        if changes and (config := read_config(args.run)) is not None:
            _changed(config, changes, prog)
        try:
            make_up(args.run, lambda config: _changed(config, changes, prog))
        except UserError as error:
            # The page is written all the same, without what needs the data.
            sys.stderr.write(f"the page lacks what needs the data: {error}\n")
        show(f"{write_report(args.run)}\n")


def _check_is_local(run: pathlib.Path) -> None:
    """Raises an error for an address on a hub: a report is written into the run directory."""
    if run.parts[:1] == (SCHEME.rstrip("/"),):
        address = SCHEME + "/".join(run.parts[1:])
        raise UserError(
            where=address,
            expected="a run directory, into which the report is written",
            found="a policy on the hub",
            remedy=f"Fetch it first: octograin pull {address} DIR, then octograin report DIR.",
        )


def _changed(config: TrainConfig, changes: Sequence[str], prog: str) -> TrainConfig:
    found = tyro.cli(
        _Changes,
        prog=prog,
        args=changes,
        default=_Changes(config),
        config=(tyro.conf.AvoidSubcommands,),
        use_underscores=True,
        registry=part_flags(),
    )
    return found.config


if __name__ == "__main__":
    main()
