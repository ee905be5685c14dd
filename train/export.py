"""`python -m train.export RUN DST`: a trained model in the layout of the original Octo."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import tyro

from pipeline.errors import UserError, user_errors_exit
from pipeline.terminal import show
from train.checkpoints import is_run, read_checkpoint
from train.octo.export import OctoExport, export_octo


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a trained model in the layout of the original Octo, whose code then loads it."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to make."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Step of the checkpoint; the last one where none is named."""
    language_encoder: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
    ] = None
    """Hugging Face name of the language encoder; needed where it is not t5-base."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and writes."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m train.export", use_underscores=True)
        _export(args)


def _export(args: Args) -> None:
    run, dst = pathlib.Path(args.run), pathlib.Path(args.dst)
    if not is_run(run):
        raise UserError(
            where=args.run,
            expected="the directory of a run, with checkpoints",
            found="none in it" if run.is_dir() else "no such directory",
            remedy="Name the save_dir of a run.",
        )
    checkpoint = read_checkpoint(run, args.step)
    export = OctoExport(
        config=checkpoint.config.model,
        params=checkpoint.params,
        statistics=original_statistics(checkpoint.datasets),
        window_size=checkpoint.config.data.window_size,
    )
    export_octo(export, dst, checkpoint.step, args.language_encoder)
    show(f"octo checkpoint: {dst}, step {checkpoint.step}\n")


def original_statistics(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of the original's `dataset_statistics.json`.

    Of a single dataset these are its statistics; of several, those of each by its name, or by its
    path where another has that name.

    Args:
      datasets: Of a checkpoint, by path.
    """
    if len(datasets) == 1:
        return _statistics(*datasets.values())
    names = collections.Counter(dataset["name"] for dataset in datasets.values())
    return {
        path if names[dataset["name"]] > 1 else dataset["name"]: _statistics(dataset)
        for path, dataset in datasets.items()
    }


def _statistics(dataset: dict[str, Any]) -> dict[str, Any]:
    """In the original's words: `observation/proprio` is `proprio`, and the action has its mask."""
    features = {
        key.removeprefix("observation/"): {k: v for k, v in values.items() if k != "count"}
        for key, values in dataset["statistics"].items()
        if key in ("action", "observation/proprio")
    }
    gripper = dataset["conventions"]["gripper_dim"]
    dims = range(len(features["action"]["mean"]))
    features["action"]["mask"] = [dim != gripper for dim in dims]
    return features | {"num_transitions": dataset["statistics"]["action"]["count"]}


if __name__ == "__main__":
    main()
