"""`octograin export RUN DST --to octo`: writes a trained model in the original Octo's layout."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import tyro

from pipeline.data.conventions import Gripper, grippers_of
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import joined_help
from pipeline.loading.data_config import Normalization
from pipeline.loading.normalize import Normalizer
from pipeline.terminal import program, show
from train.checkpoints.checkpoint_store import is_run, read_checkpoint
from train.octo.released.octo_export import OctoExport, export_octo


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a trained model in the layout of the original Octo, whose code can load it."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to create."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    language_encoder: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
    ] = None
    """Hugging Face name of the language encoder; required unless it is t5-base."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and writes the checkpoint."""
    with user_errors_exit():
        args = tyro.cli(
            joined_help(Args), prog=program("train.checkpoints.export_run"), use_underscores=True
        )
        _export(args)


def _export(args: Args) -> None:
    run, dst = pathlib.Path(args.run), pathlib.Path(args.dst)
    if not is_run(run):
        raise UserError(
            where=args.run,
            expected="the directory of a run, with checkpoints",
            found="none in it" if run.is_dir() else "no such directory",
            remedy="Give the save_dir of a run.",
        )
    checkpoint = read_checkpoint(run, args.step)
    export = OctoExport(
        config=checkpoint.config.model,
        params=checkpoint.params,
        statistics=original_statistics(checkpoint.datasets),
        conventions=original_conventions(checkpoint.datasets),
        window_size=checkpoint.config.data.window_size,
    )
    export_octo(export, dst, checkpoint.step, args.language_encoder)
    show(f"octo checkpoint: {dst}, step {checkpoint.step}\n")


def original_statistics(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of the original's `dataset_statistics.json`.

    For a single dataset these are its statistics; for several, one entry per dataset, by name, or
    by path if two have the same name.

    Args:
      datasets: The datasets of a checkpoint, by path.
    """
    if len(datasets) == 1:
        return _statistics(*datasets.values())
    return {name: _statistics(dataset) for name, dataset in _by_name(datasets).items()}


def original_conventions(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of `conventions.json`, which the original layout has no file for.

    It describes, for each dataset, what the model's actions and images mean.

    Args:
      datasets: The datasets of a checkpoint, by path.
    """
    return {name: _conventions(dataset) for name, dataset in _by_name(datasets).items()}


def _by_name(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the datasets by name, or by path where two have the same name."""
    names = collections.Counter(dataset["name"] for dataset in datasets.values())
    # The original's files are by name, so only doubled names become paths.
    return {
        path if names[dataset["name"]] > 1 else dataset["name"]: dataset
        for path, dataset in datasets.items()
    }


def _conventions(dataset: Mapping[str, Any]) -> dict[str, Any]:
    conventions = dataset["conventions"]
    found: dict[str, Any] = {
        "normalization": dataset.get("normalization", "normal"),
        "unnormalization": "action * std + mean of dataset_statistics.json where mask is true, "
        "whatever the normalization: they hold its offset and scale",
    }
    grippers = [_gripper(gripper) for gripper in grippers_of(conventions)]
    if grippers:
        # A single one keeps the name that exports have always had.
        found |= {"gripper": grippers[0]} if len(grippers) == 1 else {"grippers": grippers}
    kept = ("image_orientation", "rotation", "control_frequency_hz", "no_ops")
    return found | {name: conventions[name] for name in kept if name in conventions}


def _gripper(gripper: Gripper) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dim": gripper.dim,
        "open": 1.0,
        "close": 0.0,
        "meaning": "the model gives 1 for open and 0 for closed, not normalised; the robot's "
        "own commands are below",
        "command_open": gripper.open,
        "command_close": gripper.close,
    }
    if gripper.kind == "continuous":
        values["kind"] = "continuous: a command between the two is mapped linearly"
    return values


def _statistics(dataset: dict[str, Any]) -> dict[str, Any]:
    """Renames the statistics to the original's: `observation/proprio` becomes `proprio`."""
    grippers = grippers_of(dataset["conventions"])
    normalization = dataset.get("normalization", "normal")
    features = {
        key.removeprefix("observation/"): _undone_by_mean_and_std(values, normalization)
        for key, values in dataset["statistics"].items()
        if key in ("action", "observation/proprio")
    }
    action = features["action"]
    # The original's mask: True where an action is normalised.
    dims = {gripper.dim for gripper in grippers}
    action["mask"] = [dim not in dims for dim in range(len(action["mean"]))]
    for gripper in grippers:
        _standardize_gripper(action, gripper)
    # The original counts steps as transitions.
    found = features | {"num_transitions": dataset["statistics"]["action"]["count"]}
    if "num_episodes" in dataset:
        found["num_trajectories"] = dataset["num_episodes"]
    return found


def _undone_by_mean_and_std(
    values: Mapping[str, Any], normalization: Normalization
) -> dict[str, Any]:
    """Returns moments whose mean and std undo the run's normalisation, as the original does.

    `bounds` and `quantile` map the range from p01 to p99. The original has to add its middle and
    multiply by half its width.
    """
    # Copies of the lists, because they are changed below.
    moments = {name: list(moment) for name, moment in values.items() if name != "count"}
    if normalization == "normal":
        return moments
    statistics = FeatureStatistics.from_json(values)
    everywhere = np.ones(statistics.mean.shape, bool)
    # The original knows only mean and std; this offset and scale undo the other normalisations.
    normalizer = Normalizer.create([statistics], [everywhere], normalization)
    return moments | {"mean": normalizer.offset[0].tolist(), "std": normalizer.scale[0].tolist()}


def _standardize_gripper(moments: dict[str, Any], gripper: Gripper) -> None:
    """Converts a gripper's moments from stored commands to 1 = open and 0 = closed."""
    dim, close = gripper.dim, gripper.close
    span = gripper.open - close
    if span < 0:  # the sign flips, so the minimum becomes the maximum
        for low, high in (("min", "max"), ("p01", "p99")):
            if low in moments:
                moments[low][dim], moments[high][dim] = moments[high][dim], moments[low][dim]
    for name, moment in moments.items():
        if name == "std":
            # A deviation has no sign and no offset.
            moment[dim] = moment[dim] / abs(span)
        elif name != "mask":
            # Clipped, because statistics of noisy commands may lie a little outside of open and
            # closed.
            moment[dim] = min(max((moment[dim] - close) / span, 0.0), 1.0)


if __name__ == "__main__":
    main()
