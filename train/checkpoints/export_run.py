"""`octograin export RUN DST --to octo`: writes a trained model in the original Octo's layout.

config.json                 the model, translated to the original's modules
dataset_statistics.json     what undoes the normalization of actions and proprioception
conventions.json            what actions and images mean; the original has no file for it
example_batch.msgpack       a batch of zeros
<step>/default/checkpoint   all parameters: one msgpack file

Source: the layout of `OctoModel.save_pretrained` of Octo 1.5.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from flax import serialization

from pipeline.data.conventions import Gripper, grippers_of
from pipeline.data.statistics import FeatureStatistics
from pipeline.errors import UserError, user_errors_exit
from pipeline.files import write_text_atomically, writing
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.loading.data_config import Normalization
from pipeline.loading.normalize import make_normalizer
from pipeline.loading.transforms.input_transforms import DropObservation, StateNoise
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program, show
from train.checkpoints.checkpoint_store import Checkpoint
from train.octo.functional import input_spec
from train.octo.octo_config import OctoConfig, T5Config
from train.octo.released.released_config import original_config, parts_without_counterpart
from train.policy.policy import read_run
from train.train_config import TrainConfig

_T5 = "t5-base"


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a trained model in the layout of the original Octo, whose code can load it."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Directory to create."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    language_encoder: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
    ] = None
    """Hugging Face name of the language encoder; required unless it is t5-base."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line and writes the checkpoint."""
    log_to_stderr()
    with user_errors_exit():
        args = tyro.cli(
            joined_help(Args), prog=program("train.checkpoints.export_run"), use_underscores=True
        )
        load_parts(*args.parts)
        dst = pathlib.Path(args.dst)
        checkpoint = read_run(args.run, args.step)
        export_octo(checkpoint, dst, args.language_encoder)
        show(f"octo checkpoint: {dst}, step {checkpoint.step}\n")


def export_octo(
    checkpoint: Checkpoint, directory: pathlib.Path, language_encoder: str | None = None
) -> None:
    """Writes a checkpoint of a run in the original's layout.

    Args:
      checkpoint: The checkpoint.
      directory: The directory to create; it must be new or empty.
      language_encoder: The Hugging Face name of a T5 with the model's sizes, which the original
        code looks up; None: t5-base, which the model's encoder must then be.

    Raises:
      UserError: The directory is in use or cannot be written, or the original does not support a
        part of the model; all problems are listed together.
    """
    config = checkpoint.config
    model, window_size = config.model, config.data.window_size
    # Everything is checked before the first file is written.
    _check(config, directory, language_encoder)
    # Without the parameters that are used only in training.
    transformer = {
        name: part
        for name, part in checkpoint.params["octo_transformer"].items()
        if not name.startswith("alignments_")
    }
    params = jax.tree.map(np.asarray, checkpoint.params | {"octo_transformer": transformer})
    texts = {
        "dataset_statistics": original_statistics(checkpoint.datasets),
        "conventions": original_conventions(checkpoint.datasets),
        # `config.json` last: without it this is no checkpoint.
        "config": original_config(model, window_size, language_encoder or _T5),
    }
    with writing(directory):
        folder = directory / str(checkpoint.step) / "default"
        folder.mkdir(parents=True, exist_ok=True)
        # Orbax's layout of 2023, which the original reads.
        (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(params))
        example = serialization.msgpack_serialize(_example_batch(model, window_size))
        (directory / "example_batch.msgpack").write_bytes(example)
        for name, values in texts.items():
            write_text_atomically(directory / f"{name}.json", json.dumps(values, indent=1) + "\n")


def _check(config: TrainConfig, directory: pathlib.Path, language_encoder: str | None) -> None:
    problems = list(_problems(config, directory, language_encoder))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserError(
            where=f"export to {directory}",
            expected="a model that the original Octo can load, and a place for it",
            found=f"{len(problems)} obstacles",
            remedy="Fix each:" + "".join(f"\n  - {problem}" for problem in problems),
        )


def _problems(
    run: TrainConfig, directory: pathlib.Path, language_encoder: str | None
) -> Iterator[UserError]:
    config = run.model
    # Random ones act in training alone.
    kept = [one for one in run.data.transforms if not isinstance(one, StateNoise | DropObservation)]
    unknown = {
        "model": parts_without_counterpart(config),
        "data.transforms": [type(transform).__name__ for transform in kept],
    }
    for where, names in unknown.items():
        if names:
            yield UserError(
                where=where,
                expected="parts that the original Octo has",
                found=", ".join(names),
                remedy="Load the run's own checkpoint here instead.",
            )
    # The original builds the T5 by its name, with that model's sizes; without a name t5-base.
    if language_encoder is not None and "t5" not in language_encoder:
        yield UserError(
            where=f"language_encoder {language_encoder}",
            expected="a name with 't5' in it, by which the original recognises a T5",
            found=language_encoder,
            remedy="Give a T5 of the Hugging Face hub, or a directory with t5 in its name.",
        )
    language = config.language
    if language_encoder is None and language is not None and language.t5 != T5Config():
        yield UserError(
            where="model.language.t5",
            expected=f"the sizes of {_T5}, which the original would build",
            found=str(language.t5),
            remedy="Give an encoder of these sizes: --language_encoder NAME.",
        )
    if directory.is_file() or (directory.exists() and any(directory.iterdir())):
        yield UserError(
            where=str(directory),
            expected="a new or empty directory",
            found="a file" if directory.is_file() else "files",
            remedy="Name another.",
        )


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
    """Returns the content of `conventions.json`: for each dataset, what actions and images mean.

    Args:
      datasets: The datasets of a checkpoint, by path.
    """
    return {name: _conventions(dataset) for name, dataset in _by_name(datasets).items()}


def _by_name(datasets: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the datasets by name, or by path where two have the same name."""
    names = collections.Counter(dataset["name"] for dataset in datasets.values())
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


def _statistics(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the statistics to the original's: `observation/proprio` becomes `proprio`."""
    grippers = grippers_of(dataset["conventions"])
    features = {
        key.removeprefix("observation/"): _moments(values, dataset.get("normalization", "normal"))
        for key, values in dataset["statistics"].items()
        if key in ("action", "observation/proprio")
    }
    action = features["action"]
    for gripper in grippers:
        _standardize_gripper(action, gripper)
    # The original's mask: True where an action is normalised.
    dims = {gripper.dim for gripper in grippers}
    action["mask"] = [dim not in dims for dim in range(len(action["mean"]))]
    # The original counts steps as transitions.
    found = features | {"num_transitions": dataset["statistics"]["action"]["count"]}
    if "num_episodes" in dataset:
        found["num_trajectories"] = dataset["num_episodes"]
    return found


def _moments(values: Mapping[str, Any], normalization: Normalization) -> dict[str, Any]:
    """Returns moments whose mean and std undo the run's normalization, as the original does.

    `bounds` and `quantile` map the range from p01 to p99. The original knows only mean and std: it
    has to add the middle and multiply by half the width.
    """
    # Copies of the lists, because a gripper's are changed.
    moments = {name: list(moment) for name, moment in values.items() if name != "count"}
    if normalization == "normal":
        return moments
    statistics = FeatureStatistics.from_json(values)
    everywhere = np.ones(statistics.mean.shape, bool)
    normalizer = make_normalizer([statistics], [everywhere], normalization)
    return moments | {"mean": normalizer.offset[0].tolist(), "std": normalizer.scale[0].tolist()}


def _standardize_gripper(moments: dict[str, Any], gripper: Gripper) -> None:
    """Converts a gripper's moments from stored commands to 1 = open and 0 = closed."""
    dim, span = gripper.dim, gripper.open - gripper.close
    if span < 0:  # the sign flips, so the minimum becomes the maximum
        for low, high in (("min", "max"), ("p01", "p99")):
            if low in moments:
                moments[low][dim], moments[high][dim] = moments[high][dim], moments[low][dim]
    for name, moment in moments.items():
        if name == "std":
            # A deviation has no sign and no offset.
            moment[dim] = moment[dim] / abs(span)
        else:
            moment[dim] = gripper.standardize(np.array([moment[dim]])).item()


def _example_batch(config: OctoConfig, window_size: int) -> dict[str, Any]:
    """Returns an example batch of zeros, with the dtypes of the original's loader: int64 ids."""
    config = dataclasses.replace(config, vggt=None, more_vggt=())
    spec = input_spec(config, 1, window_size)
    batch = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), spec)
    observation, task = batch["observation"], batch["task"]
    real = np.ones((1, window_size), bool)
    observation["timestep"] = np.zeros(real.shape, np.int32)
    observation["timestep_pad_mask"] = real
    # Octo pads `timestep` like an observation.
    observation["pad_mask_dict"] = dict.fromkeys([*config.input_keys, "timestep"], real)
    task["pad_mask_dict"] = {}
    if "language_instruction" in task:
        ids = task["language_instruction"]
        task["language_instruction"] = {k: v.astype(np.int64) for k, v in ids.items()}
        task["pad_mask_dict"]["language_instruction"] = np.ones(1, bool)
    for image in config.images:
        shape = (1, image.image_size, image.image_size, 3)
        task[image.observation_key] = np.zeros(shape, np.uint8)
        # False: the example has no goal image.
        task["pad_mask_dict"][image.observation_key] = np.zeros(1, bool)
    return batch


if __name__ == "__main__":
    main()
