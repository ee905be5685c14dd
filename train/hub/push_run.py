"""`octograin push RUN hf://owner/name`: publishes a checkpoint of a run, with a model card."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from pipeline.data.manifest import FILE_NAME as DATASET_NAME
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.hub.hub_address import DATASETS, Repository
from pipeline.hub.hub_client import open_hub
from pipeline.hub.hub_push import CARD_NAME, Pushed, keeps_card, parse_branch
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program, show
from train.checkpoints.checkpoint_copy import Precision
from train.checkpoints.checkpoint_store import read_checkpoint
from train.checkpoints.hub_paths import checkpoint_steps, own_paths
from train.exported.rounding_check import describe_difference
from train.hub.published_run import PublishedRun
from train.hub.pushed_files import PushedFiles, pushed_files


@dataclasses.dataclass(frozen=True)
class Args:
    """Puts a checkpoint of a run on the Hugging Face hub in one commit, with a card.

    The card, README.md, says how to use the policy, and has the figures of the report. Files of an
    earlier push to the same repository are replaced. Log in before with `hf auth login`, or set
    HF_TOKEN to a token that may write.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    address: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADDRESS")]
    """hf://owner/name, with @ and a branch behind it for one that is not the default."""
    checkpoint: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    with_optimizer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Push the optimizer state too, which is needed to resume the run but not to act."""
    dtype: Precision = "float32"
    """Type of the pushed parameters. With float16 they take half the space, and the difference in
    actions is printed; the policy computes in the run's own type."""
    license: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """Licence of the policy as the hub names it, such as apache-2.0; it has to suit those of the
    data and of the pretrained weights."""
    private: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make a private repository; one that exists has to be private already."""
    replace_card: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a README.md that was written or changed by hand."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, pushes and prints the address of what was pushed."""
    log_to_stderr()
    with user_errors_exit(interrupted="interrupted; the same command resumes"):
        args = tyro.cli(joined_help(Args), prog=program("train.hub.push_run"), use_underscores=True)
        load_parts(*args.parts)
        pushed = push_run(args)
        show(pushed.describe(args.run, is_private=args.private))


def push_run(args: Args) -> Pushed:
    """Pushes a checkpoint in one commit.

    Raises:
      UserError: There is no such checkpoint, it cannot be pushed with these options, or the
        repository has files that are not of a run.
      DataError: The run is corrupt, or the hub refuses or is not reached.
    """
    repository = parse_branch(args.address, is_dataset=False)
    _check_is_no_dataset(args)
    directory, address = pathlib.Path(args.run), str(repository.at_revision(None))
    run = PublishedRun.of(directory, args.checkpoint, address, args.license, args.dtype)
    with pushed_files(directory, run, with_optimizer=args.with_optimizer) as files:
        state = "with" if args.with_optimizer else "without"
        show(f"training step {files.step} {state} its optimizer state: {files}\n")
        if args.dtype == "float16":
            show(describe_difference(run.checkpoint, read_checkpoint(files.folder)))
        return publish(files, repository, is_private=args.private, replace_card=args.replace_card)


def publish(
    files: PushedFiles,
    repository: Repository,
    *,
    is_private: bool = False,
    replace_card: bool = False,
) -> Pushed:
    """Uploads files in one commit, which deletes those of an earlier push that are not among them.

    Args:
      files: The files.
      repository: The repository, which is made if it is missing; its revision is the branch.
      is_private: Whether a repository that is made is private.
      replace_card: Whether a README.md that was written or changed by hand is replaced.

    Raises:
      UserError: The repository has files that are not of a run.
      DataError: The hub refuses or is not reached, or there is a later commit than was looked at.
    """
    hub = open_hub()
    is_new = hub.create(repository, is_private=is_private)
    before = hub.resolve(repository)
    there = [file.path for file in hub.list_files(before)]
    _check_replaceable(repository, there)
    deleted = sorted({*own_paths(there)} - files.paths.keys())
    is_card_kept = not replace_card and keeps_card(hub, before, there)
    added: dict[str, pathlib.Path | bytes] = {**files.paths}
    if not is_card_kept:
        added[CARD_NAME] = files.card.encode()
    message = f"Push training step {files.step}"
    after = hub.commit(repository, added, deleted, message, parent=before.revision)
    return Pushed(after, is_new, is_card_kept, len(deleted))


def _check_is_no_dataset(args: Args) -> None:
    if pathlib.Path(args.run, DATASET_NAME).is_file():
        raise UserError(
            where=args.run,
            expected="a run directory",
            found="a dataset directory",
            remedy=f"Push it to {DATASETS}owner/name.",
        )


def _check_replaceable(repository: Repository, there: list[str]) -> None:
    """Checks that files which a push would replace or delete are those of a run."""
    own = own_paths(there)
    if own and not checkpoint_steps(there):
        raise UserError(
            where=str(repository),
            expected="an empty repository, or one with a run of octograin",
            found=f"{', '.join(own)}, but no checkpoint of octograin",
            remedy="Push to a repository of another name; it is made if it is missing.",
        )


if __name__ == "__main__":
    main()
