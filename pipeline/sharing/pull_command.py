"""`octograin pull hf://datasets/owner/name DIR`: fetches a dataset from the hub."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from pipeline.data.dataset import on_disk
from pipeline.errors import user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.hub.hub_address import parse_repository
from pipeline.hub.hub_cache import pin
from pipeline.hub.hub_transfer import size
from pipeline.sharing.pull import pull
from pipeline.sharing.pull_plan import PullPlan, plan_pull
from pipeline.sharing.remote_dataset import read_remote
from pipeline.terminal import count, log_to_stderr, program, show


@dataclasses.dataclass(frozen=True)
class Args:
    """Fetches a dataset of this project from the Hugging Face hub into a directory.

    A pull that was ended resumes when the same command is run again. Every shard is compared with
    its checksum. The commit is kept in DIR/hub.json.
    """

    address: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADDRESS")]
    """hf://datasets/owner/name, with @ and a branch, tag or commit behind it to pin one."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory to write; missing, empty, or pulled from the same commit."""
    columns: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = None
    """Columns to fetch, or features whose columns are fetched, such as action or image_primary.
    The column episodes always is. By default all are."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List the columns and their sizes, and fetch nothing."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and pulls."""
    with user_errors_exit(interrupted="interrupted; the same command resumes"):
        args = tyro.cli(
            joined_help(Args), prog=program("pipeline.sharing.pull_command"), use_underscores=True
        )
        log_to_stderr()
        repository = parse_repository(args.address, "hf://datasets/owner/name[@revision]")
        directory = pathlib.Path(on_disk(args.dst))
        plan = plan_pull(read_remote(pin(repository)), directory, args.columns)
        if args.dry_run:
            show(describe_plan(plan))
            return
        to_fetch = plan.num_bytes - plan.num_done
        pull(plan)
        columns = ", ".join(column.name for column in plan.manifest.schema.columns)
        fetched = f"fetched {size(to_fetch)}" if plan.files else "nothing to fetch"
        show(f"{args.dst}: {fetched} of {plan.dataset.repository}; columns {columns}\n")


def describe_plan(plan: PullPlan) -> str:
    """Lists the columns of a dataset on the hub, and what a pull would fetch."""
    manifest = plan.dataset.manifest
    episodes, steps = len(manifest.episode_lengths), sum(manifest.episode_lengths)
    to_fetch = {file.path.split("/")[0] for file in plan.files}
    lines = [
        f"{plan.dataset.repository}: {manifest.name}, {count(episodes, 'episode')}, "
        f"{count(steps, 'step')}"
    ]
    width = max(len(column.name) for column in manifest.schema.columns)
    for column in manifest.schema.columns:
        num_bytes = sum(shard.num_bytes for shard in manifest.shards[column.name])
        state = "left out"
        if column.name in plan.columns:
            state = "to fetch" if column.name in to_fetch else "there"
        keys = ", ".join(feature.key for feature in column.features)
        lines.append(f"  {column.name:{width}}  {size(num_bytes):>10}  {state:8}  {keys}")
    rest = size(plan.num_bytes - plan.num_done)
    return "\n".join([*lines, f"to fetch to {plan.directory}: {rest}"]) + "\n"


if __name__ == "__main__":
    main()
