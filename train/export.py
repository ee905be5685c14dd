"""`python -m train.export RUN DST`: a trained model in the layout of the original Octo."""

import dataclasses
import pathlib
import sys
from typing import Annotated, Any

import tyro

from pipeline.errors import user_errors_exit
from train.checkpoints import read_checkpoint
from train.directory import read_config
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
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and writes."""
    args = tyro.cli(Args, prog="python -m train.export", use_underscores=True)
    with user_errors_exit(debug=args.debug):
        _export(args)


def _export(args: Args) -> None:
    run, dst = pathlib.Path(args.run), pathlib.Path(args.dst)
    config = read_config(run)
    checkpoint = read_checkpoint(run, args.step)
    statistics = {d["name"]: _statistics(d) for d in checkpoint.datasets.values()}
    if len(statistics) == 1:
        (statistics,) = statistics.values()
    export = OctoExport(config.model, checkpoint.params, statistics, config.data.window_size)
    export_octo(export, dst, checkpoint.step)
    sys.stdout.write(f"octo checkpoint: {dst}, step {checkpoint.step}\n")


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
