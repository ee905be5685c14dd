"""`python -m train.parity RUN`: whether a policy sees at rollout what it was trained on.

A stored episode is shown to the policy's input path as an environment would show it: frame by
frame, the raw proprioception, the instruction's text. What the model would read then is compared
with what the loader makes of the same steps, array by array; only bitwise identity passes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import sentencepiece
import tyro

from pipeline.batch import FlatBatch, LeafSpec
from pipeline.config import DatasetConfig
from pipeline.dataset import Dataset, on_disk, open_dataset
from pipeline.errors import UserError, user_errors_exit
from pipeline.gather import read_into
from pipeline.loader import Loader
from pipeline.manifest import load_manifest
from pipeline.schema import ACTION, EPISODES
from pipeline.terminal import show
from pipeline.text import Encode
from train.checkpoints import Checkpoint
from train.policy.inputs import PolicyInputs, Task
from train.policy.policy import read_run
from train.policy.spec import PolicySpec

EXIT_DIFFERENT = 1
_BELOW = "observation/"


@dataclasses.dataclass
class Comparison:
    """One array of a batch, over all steps."""

    key: str
    """Path in the batch."""
    type: str = ""
    """`dtype[shape]` in training, of one sample."""
    max_difference: float = 0.0
    """Largest; infinite where dtype, shape or presence differ, or a number is not finite."""
    steps: list[int] = dataclasses.field(default_factory=list)
    """Those that differ."""


class StoredTokens:
    """The tokens of a dataset in an encoder's place: the encoder itself is not compared."""

    cameras: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tokens: dict[str, np.ndarray] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Those of the step that was set last."""
        del images
        return self.tokens


def compare(
    comparisons: dict[str, Comparison], step: int, training: FlatBatch, policy: FlatBatch
) -> None:
    """Adds what differs at a step.

    Args:
      comparisons: By path; those of arrays that are met for the first time are added.
      step: Of the episode.
      training: What the loader makes, by path, without the batch axis.
      policy: What the policy makes.
    """
    for key in sorted(training.keys() | policy.keys()):
        found = comparisons.setdefault(key, Comparison(key))
        theirs, ours = training.get(key), policy.get(key)
        if theirs is not None:
            found.type = str(LeafSpec(str(theirs.dtype), theirs.shape))
        difference = _difference(theirs, ours)
        if difference:
            found.max_difference = max(found.max_difference, difference)
            found.steps.append(step)


def compare_episode(
    checkpoint: Checkpoint, spec: PolicySpec, dataset: Dataset, episode: int
) -> list[Comparison]:
    """Every array that the model reads, and the action that it learns, along an episode.

    Args:
      checkpoint: Of the policy.
      spec: Of the policy.
      dataset: Where the episode lies.
      episode: Its number.

    Raises:
      UserError: No such episode, or the dataset lacks what the policy reads.
      RecordError: A corrupt record or image.
    """
    if not 0 <= episode < dataset.num_episodes:
        raise UserError(
            where=f"{dataset.path}, episode",
            expected=f"0 to {dataset.num_episodes - 1}",
            found=str(episode),
            remedy="Name one that is there.",
        )
    vocabulary = sentencepiece.SentencePieceProcessor()
    vocabulary.LoadFromSerializedProto(checkpoint.vocabulary)
    loader, place = _loader(spec, dataset, vocabulary.EncodeAsIds)
    stored = StoredTokens()
    inputs = PolicyInputs(spec, vocabulary.EncodeAsIds, stored)
    comparisons: dict[str, Comparison] = {}
    for t in range(dataset.manifest.episode_lengths[episode]):
        step = int(dataset.episode_starts[episode]) + t
        batch = _without_batch_axis(loader.read(place, [step]))
        shown = _read_step(dataset, episode, t, spec)
        task = _read_task(dataset, episode, t, spec, batch)
        if t == 0:
            inputs.reset(0, task)
        inputs.instruct(0, task)
        stored.tokens = {key: value[None] for key, value in shown.items()}
        inputs.push({0: {key.removeprefix(_BELOW): value for key, value in shown.items()}})
        policy = _without_batch_axis(inputs.batch([0]))
        policy[ACTION] = spec.normalize_actions(shown[ACTION][None])[0]
        training = {key: batch[key] for key in spec.leaves if key in batch}
        training[ACTION] = batch[ACTION][-1, 0]  # the current step's own action
        compare(comparisons, t, training, policy)
    return list(comparisons.values())


def table(comparisons: Sequence[Comparison], num_steps: int) -> str:
    """One line an array."""
    width = max(len(found.key) for found in comparisons)
    kinds = max(len(found.type) for found in comparisons)
    lines = [f"{'array':{width}}  {'type':{kinds}}  largest difference  steps that differ"]
    for found in comparisons:
        steps = f"{len(found.steps)} of {num_steps}"
        if found.steps:
            steps += f", the first {found.steps[0]}"
        difference = f"{found.max_difference:.3g}"
        lines.append(f"{found.key:{width}}  {found.type:{kinds}}  {difference:18}  {steps}")
    return "\n".join(lines)


def _difference(theirs: np.ndarray | None, ours: np.ndarray | None) -> float:
    """The largest difference of two arrays; infinite where they cannot be compared."""
    if theirs is None or ours is None:
        return math.inf
    if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape):
        return math.inf
    if np.array_equal(theirs, ours):
        return 0.0
    largest = float(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)).max())
    return largest if math.isfinite(largest) else math.inf


def _loader(spec: PolicySpec, dataset: Dataset, encode: Encode) -> tuple[Loader, int]:
    """The run's loader, of one sample a batch, and the dataset's place in its mixture.

    Other datasets are opened only where their statistics are mixed in, or they have what this one
    lacks.
    """
    data = spec.data
    place = [part.path for part in data.datasets].index(spec.dataset)
    sizes = spec.model.image_sizes
    if data.statistics == "mixture" or spec.missing or spec.resized:
        moved = dataclasses.replace(data.datasets[place], path=dataset.path)
        parts = (*data.datasets[:place], moved, *data.datasets[place + 1 :])
        datasets = [
            dataset if number == place else open_dataset(part.path, data.keys_of(part))
            for number, part in enumerate(parts)
        ]
        mixture = dataclasses.replace(data, datasets=parts)
        return Loader(mixture, 1, datasets, encode, image_sizes=sizes), place
    alone = DatasetConfig(dataset.path, missing=data.datasets[place].missing)
    data = dataclasses.replace(data, datasets=(alone,), split="all")
    return Loader(data, 1, [dataset], encode), 0


def _read_step(dataset: Dataset, episode: int, t: int, spec: PolicySpec) -> dict[str, np.ndarray]:
    """What an environment would have shown at a step, and the action as stored, by feature key."""
    keys = [ACTION, *(f"{_BELOW}{name}" for name in (*spec.observed, *spec.tokens))]
    return {key: _read_feature(dataset, episode, t, key) for key in keys}


def _read_task(dataset: Dataset, episode: int, t: int, spec: PolicySpec, batch: FlatBatch) -> Task:
    """The instruction of a step or, where the loader's sample has them, its goal images."""
    cameras = [name for name in spec.cameras if batch.get(f"task/pad_mask_dict/{name}")]
    if cameras:
        goal = int(batch["task/timestep"])
        images = {c: _read_feature(dataset, episode, goal, f"{_BELOW}{c}") for c in cameras}
        return Task("", images)
    return Task(dataset.manifest.tasks[dataset.task_index(episode, t)], {})


def _read_feature(dataset: Dataset, episode: int, t: int, key: str) -> np.ndarray:
    column, feature = dataset.manifest.schema.find(key, dataset.path)
    reader = dataset.columns[column.name]
    if column.name == EPISODES:
        shape = column.in_batch(feature).shape
        return np.asarray(reader.read(episode)[key][t]).reshape(shape)
    value = np.empty(feature.shape, feature.batch_dtype)
    read_into(reader, int(dataset.episode_starts[episode]) + t, {key: value})
    return value


def _flat(nested: dict[str, Any], prefix: str = "") -> FlatBatch:
    """The inverse of `pipeline.batch.nest`."""
    flat: FlatBatch = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        flat |= _flat(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return flat


def _without_batch_axis(batch: dict[str, Any]) -> FlatBatch:
    """The arrays of a nested batch of one, by path."""
    return {key: np.asarray(value[0]) for key, value in _flat(batch).items()}


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares what a policy would see along a stored episode with what it was trained on."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Dataset directory; the run's own where none is named."""
    episode: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Episode of it, counted from 0."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Step of the checkpoint; the last one where none is named."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Parses the command line, compares, and prints; exit code 1 where an array differs."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m train.parity", use_underscores=True)
        raise SystemExit(_report(args))


def _report(args: Args) -> int:
    checkpoint = read_run(args.run, args.step)
    path, spec = _locate(checkpoint, args.dataset)
    dataset = open_dataset(path, spec.keys)
    comparisons = compare_episode(checkpoint, spec, dataset, args.episode)
    num_steps = dataset.manifest.episode_lengths[args.episode]
    differing = [found for found in comparisons if found.steps]
    verdict = (
        f"{len(differing)} of {len(comparisons)} arrays differ"
        if differing
        else f"bitwise identical: {len(comparisons)} arrays"
    )
    show(f"{table(comparisons, num_steps)}\n")
    show(f"{verdict}; episode {args.episode} of {path}, step {checkpoint.step}\n")
    return EXIT_DIFFERENT if differing else 0


def _locate(checkpoint: Checkpoint, directory: str | None) -> tuple[str, PolicySpec]:
    """Where the dataset lies, and what the policy is for it; a moved one is known by its name."""
    if directory is None or directory in checkpoint.datasets:
        spec = PolicySpec.of(checkpoint, directory)
        return spec.dataset, spec
    if len(checkpoint.datasets) == 1:
        return directory, PolicySpec.of(checkpoint)
    return directory, PolicySpec.of(checkpoint, load_manifest(on_disk(directory)).name)


if __name__ == "__main__":
    main()
