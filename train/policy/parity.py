"""`octograin parity RUN`: checks that a policy sees at rollout what it was trained on.

It shows a stored episode to the policy's input path as an environment would: frame by frame, with
raw proprioception and the instruction as text. It compares the arrays that the model would read
with those that the loader makes of the same steps; only bitwise identical arrays pass. The actions
that the loader makes have to return to the recorded ones through the policy's inverses.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import sentencepiece
import tyro

from pipeline.data.conventions import standardize_gripper
from pipeline.data.dataset import Dataset, on_disk, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import ACTION, EPISODES
from pipeline.errors import UserError, user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.loading.batch import FlatBatch, LeafSpec
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.text import Encode
from pipeline.loading.transforms.action_transforms import MaskActions
from pipeline.parts.part_files import load_parts
from pipeline.terminal import program, show
from train.checkpoints.checkpoint_store import Checkpoint
from train.policy.policy import read_run
from train.policy.policy_inputs import PolicyInputs, Task
from train.policy.policy_spec import PolicySpec

EXIT_DIFFERENT = 1
_TOLERANCE = 1e-3
"""Largest difference of an action that returned, in standard deviations."""
_BELOW = "observation/"


@dataclasses.dataclass
class Comparison:
    """The comparison of one array, over all steps of an episode."""

    key: str
    """Path of the array in the batch."""
    type: str = ""
    """`dtype[shape]` of one training sample."""
    max_difference: float = 0.0
    """Largest difference; infinite if dtype, shape or presence differ, or a value is not finite."""
    steps: list[int] = dataclasses.field(default_factory=list)
    """Steps of the episode at which the arrays differ."""

    def add(self, step: int, theirs: Any, ours: Any, tolerance: float = 0.0) -> None:
        """Adds the arrays of one step; None: one side does not have it."""
        if theirs is not None:
            self.type = str(LeafSpec(str(theirs.dtype), theirs.shape))
        difference = _difference(theirs, ours)
        self.max_difference = max(self.max_difference, difference)
        if difference > tolerance:
            self.steps.append(step)


class StoredTokens:
    """Returns a dataset's stored tokens in place of an encoder, which is not compared."""

    # No camera is read: the tokens come from the dataset.
    cameras: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.tokens: dict[str, np.ndarray] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the tokens of the step that was set last."""
        del images
        return self.tokens


def compare_episode(
    checkpoint: Checkpoint, spec: PolicySpec, dataset: Dataset, episode: int
) -> list[Comparison]:
    """Compares every array that the model reads along an episode, and the actions that return.

    The chunk that the loader makes of a step goes back through the policy's inverses; the last
    comparison is of the result and the recorded actions, in standard deviations.

    Args:
      checkpoint: The checkpoint of the policy.
      spec: What the policy reads and returns.
      dataset: The dataset of the episode.
      episode: Number of the episode in the dataset.

    Raises:
      UserError: There is no such episode, or the dataset lacks a feature that the policy reads.
      RecordError: A record or image is corrupt.
    """
    if not 0 <= episode < dataset.num_episodes:
        raise UserError(
            where=f"{dataset.path}, episode",
            expected=f"0 to {dataset.num_episodes - 1}",
            found=str(episode),
            remedy="Choose an episode that exists.",
        )
    vocabulary = sentencepiece.SentencePieceProcessor()
    vocabulary.LoadFromSerializedProto(checkpoint.vocabulary)
    loader, place = _loader(spec, dataset, vocabulary.EncodeAsIds)
    stored = StoredTokens()
    inputs = PolicyInputs(spec, vocabulary.EncodeAsIds, stored)
    found = {key: Comparison(key) for key in spec.leaves}
    returned = Comparison(ACTION)
    scale, kept = _scale(spec, dataset), _kept(spec)
    for t in range(dataset.manifest.episode_lengths[episode]):
        # Steps of the dataset; `t` counts in the episode.
        step = int(dataset.episode_starts[episode]) + t
        training = loader.read(place, [step])
        shown = _read_step(dataset, episode, t, spec)
        task = _read_task(dataset, episode, t, spec, _flat(training))
        # At the first step only: like an environment, so the history grows as in a rollout.
        if t == 0:
            inputs.reset(0, task)
        # Instructions may change inside an episode.
        inputs.instruct(0, task)
        # One row: the encoder is called for a batch of environments.
        stored.tokens = {key: value[None] for key, value in shown.items()}
        inputs.push({0: {key.removeprefix(_BELOW): value for key, value in shown.items()}})
        policy = inputs.batch([0])
        theirs, ours = _flat(training), _flat(policy.arrays)
        for key, comparison in found.items():
            comparison.add(t, theirs.get(key), ours.get(key))
        # The first action of the chunk that the loader makes of this step.
        restored = policy.restore(training[ACTION][:, -1])[0, 0]
        returned.add(t, (shown[ACTION] / scale)[kept], (restored / scale)[kept], _TOLERANCE)
    # Values that were clipped do not return.
    return [*found.values(), *([] if spec.normalization == "bounds" else [returned])]


def table(comparisons: Sequence[Comparison], num_steps: int) -> str:
    """Returns a text table with one line per array."""
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
    """Returns the largest difference of two arrays; infinite if they cannot be compared."""
    if theirs is None or ours is None:
        return math.inf
    if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape):
        return math.inf
    # Also false for NaN, whose difference is then infinite.
    if np.array_equal(theirs, ours):
        return 0.0
    # float64, because unsigned integers would wrap.
    largest = float(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)).max())
    return largest if math.isfinite(largest) else math.inf


def _kept(spec: PolicySpec) -> list[int]:
    """Returns the dimensions of the action that training keeps."""
    masks = [one for one in spec.data.transforms if isinstance(one, MaskActions)]
    lost = {name for mask in masks for name in mask.dims}
    return [dim for dim, name in enumerate(spec.before[ACTION].dims) if name not in lost]


def _loader(spec: PolicySpec, dataset: Dataset, encode: Encode) -> tuple[Loader, int]:
    """Returns the run's loader, with one sample per batch, and the dataset's index in its mixture.

    Other datasets are opened only if their statistics are mixed in, or they have a feature that
    this one lacks.
    """
    data = spec.data
    place = [part.path for part in data.datasets].index(spec.dataset)
    sizes = spec.model.image_sizes
    if data.statistics == "mixture" or spec.missing or spec.resized:
        # The dataset may have moved since training.
        moved = dataclasses.replace(data.datasets[place], path=dataset.path)
        parts = (*data.datasets[:place], moved, *data.datasets[place + 1 :])
        datasets = [
            dataset if number == place else open_dataset(part.path, data.keys_of(part))
            for number, part in enumerate(parts)
        ]
        mixture = dataclasses.replace(data, datasets=parts)
        return Loader(mixture, 1, datasets, encode, image_sizes=sizes).without_random(), place
    alone = DatasetConfig(dataset.path, missing=data.datasets[place].missing)
    # Alone, its statistics are its own, and nothing else has to be there.
    data = dataclasses.replace(data, datasets=(alone,), split="all")
    return Loader(data, 1, [dataset], encode).without_random(), 0


def _read_step(dataset: Dataset, episode: int, t: int, spec: PolicySpec) -> dict[str, np.ndarray]:
    """Reads what an environment would show at a step, and the action, 1 = open, by feature key."""
    keys = [f"{_BELOW}{name}" for name in (*spec.observed, *spec.tokens)]
    shown = {key: _read_feature(dataset, episode, t, key) for key in keys}
    action = _read_feature(dataset, episode, t, ACTION)
    return shown | {ACTION: standardize_gripper(action[None], spec.conventions)[0]}


def _scale(spec: PolicySpec, dataset: Dataset) -> np.ndarray:
    """Returns what the differences of each action dimension are divided by; float32 (a)."""
    std = dataset.statistics[ACTION].std
    # A gripper is 1 = open, 0 = close, and constant dimensions have no deviation.
    is_arm = spec.conventions.normalized_dims(len(std)) & (std > 0)
    return np.where(is_arm, std, np.float32(1))


def _read_task(dataset: Dataset, episode: int, t: int, spec: PolicySpec, batch: FlatBatch) -> Task:
    """Returns a step's instruction, or its goal images if the loader's sample has them."""
    # The loader's sample says which kind of task it drew.
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
        # A view of one step of the trajectory.
        return np.asarray(reader.read(episode)[key][t]).reshape(shape)
    value = np.empty(feature.shape, feature.batch_dtype)
    reader.read_into(int(dataset.episode_starts[episode]) + t, {key: value})
    return value


def _flat(nested: dict[str, Any], prefix: str = "") -> FlatBatch:
    """Returns the arrays of a nested batch of one sample by path, without the batch axis."""
    flat: FlatBatch = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}/")
        else:
            flat[path] = np.asarray(value[0])
    return flat


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares what a policy would see along a stored episode with what it was trained on."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Dataset directory; the run's own by default."""
    episode: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Number of the episode, starting at 0."""
    step: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Training step of the checkpoint; the last one by default."""
    parts: PartsFlag = ()
    """Python file, or module, that defines classes of your own which the run records; may be given
    several times."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show a traceback with an error."""


def main() -> None:
    """Compares an episode and prints the result; exits with code 1 if an array differs."""
    with user_errors_exit():
        args = tyro.cli(
            joined_help(Args), prog=program("train.policy.parity"), use_underscores=True
        )
        load_parts(*args.parts)
        raise SystemExit(_report(args))


def _report(args: Args) -> int:
    checkpoint = read_run(args.run, args.step)
    path, spec = _locate(checkpoint, args.dataset)
    dataset = open_dataset(path, spec.keys)
    comparisons = compare_episode(checkpoint, spec, dataset, args.episode)
    num_steps = dataset.manifest.episode_lengths[args.episode]
    differing = [found for found in comparisons if found.steps]
    verdict = f"{len(differing)} of {len(comparisons)} arrays differ"
    if not differing:
        *inputs, last = comparisons
        returned = f", and actions return to {last.max_difference:.2g} standard deviations"
        is_there = last.key == ACTION
        verdict = f"bitwise identical: {len(inputs) + (not is_there)} arrays{returned * is_there}"
    show(f"{table(comparisons, num_steps)}\n")
    show(f"{verdict}; episode {args.episode} of {path}, step {checkpoint.step}\n")
    return EXIT_DIFFERENT if differing else 0


def _locate(checkpoint: Checkpoint, directory: str | None) -> tuple[str, PolicySpec]:
    """Returns the dataset's directory and the policy's spec; a moved dataset is matched by name."""
    if directory is None or directory in checkpoint.datasets:
        spec = PolicySpec.of(checkpoint, directory)
        return spec.dataset, spec
    if len(checkpoint.datasets) == 1:
        return directory, PolicySpec.of(checkpoint)
    return directory, PolicySpec.of(checkpoint, load_manifest(on_disk(directory)).name)


if __name__ == "__main__":
    main()
