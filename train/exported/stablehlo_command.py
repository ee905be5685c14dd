"""`octograin export RUN OUT --to stablehlo`: exports a policy to one file that runs anywhere."""

import dataclasses
import math
import pathlib
from typing import Annotated

import tyro

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.parts.part_files import load_parts
from pipeline.terminal import count, log_to_stderr, program, show
from train.checkpoints.checkpoint_store import Checkpoint
from train.exported.export_file import check_free
from train.exported.policy_export import Export, ExportConfig, export_policy
from train.policy.policy import read_run

_MB = 1e6
_MOST_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Args:
    """Exports the policy of a run to one file that runs with jax and numpy alone."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File to create, such as policy.zip."""
    instruction: tyro.conf.UseAppendAction[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
    ] = ()
    """Instruction that the policy will be given; may be given several times. By default, those of
    the run's datasets, if they are where they were in training."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Dataset whose statistics and conventions are used, by path or name; required if the run was
    trained on several that differ."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Environments that are computed at once."""
    platforms: Annotated[str | None, tyro.conf.arg(metavar="P,P", help_behavior_hint="")] = None
    """Platforms of jax to export for, of cpu, cuda, rocm and tpu; by default, that of this
    machine."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an exported policy that stands at OUT."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and exports the policy."""
    log_to_stderr()
    with user_errors_exit():
        name = program("train.exported.stablehlo_command")
        args = tyro.cli(joined_help(Args), prog=name, use_underscores=True)
        load_parts(*args.parts)
        path = pathlib.Path(args.out)
        platforms = tuple(map(str.strip, args.platforms.split(","))) if args.platforms else ()
        # Before the checkpoint is read, which may be fetched from a hub.
        texts = tuple(dict.fromkeys(args.instruction))
        config = ExportConfig(texts, args.batch_size, platforms)
        check_free(path, overwrite=args.overwrite)
        checkpoint = read_run(args.run, args.step)
        if not config.instructions:
            config = dataclasses.replace(config, instructions=instructions_of(checkpoint))
        export = export_policy(checkpoint, path, config, args.dataset, overwrite=args.overwrite)
        show(describe(path, checkpoint, config, export))


def instructions_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns the instructions of a run's datasets; none if it was trained on goal images.

    They are read from the datasets, as a checkpoint does not hold them.

    Raises:
      UserError: A dataset is not where it was in training.
    """
    if checkpoint.config.data.conditioning == "image_conditioned":
        return ()
    try:
        datasets = [open_dataset(path) for path in checkpoint.datasets]
    except UserError as error:
        raise UserError(
            where="--instruction",
            expected="the instructions that the policy will be given, as a dataset of the run "
            "cannot be opened",
            found=f"none ({error.where}: {error.found})",
            remedy="Name each: --instruction 'open the drawer'.",
        ) from error
    texts = (text for dataset in datasets for text in dataset.manifest.tasks)
    return tuple(dict.fromkeys(filter(None, texts)))


def describe(
    path: pathlib.Path, checkpoint: Checkpoint, config: ExportConfig, export: Export
) -> str:
    """Returns what was exported, as lines."""
    names = config.instructions[:_MOST_SHOWN]
    hidden = len(config.instructions) - len(names)
    check = "checked: a chunk is bitwise identical to the policy's"
    if math.isnan(export.difference):
        check = f"not checked: the program is for {', '.join(config.platforms)} alone"
    elif export.difference:
        check = f"checked: a chunk differs from the policy's by up to {export.difference:.2g}"
    return "\n".join(
        [
            f"policy: {path}, {export.num_bytes / _MB:,.0f} MB, {export.num_parameters:,} "
            f"parameters, training step {checkpoint.step}",
            *([f"instructions: {count(len(config.instructions), 'text')}"] if names else []),
            *(f"  {name}" for name in names),
            *([f"  and {hidden} more"] if hidden else []),
            check,
            f"try it: python {path}",
            "",
        ]
    )
