"""`octograin parity RUN`: checks that a policy sees at rollout what it was trained on.

It shows a stored episode to the policy's input path as an environment would: frame by frame, with
raw proprioception and the instruction as text. It compares the arrays that the model would read
with those that the loader makes of the same steps; only bitwise identical arrays pass. The actions
that the loader makes have to return to the recorded ones through the policy's inverses.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import tyro
from flax.traverse_util import flatten_dict

from pipeline.data.conventions import standardize_gripper
from pipeline.data.dataset import Dataset, locate, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import ACTION
from pipeline.errors import user_errors_exit
from pipeline.flag_help import PartsFlag, joined_help
from pipeline.loading.batch import LeafSpec
from pipeline.loading.data_config import DataConfig
from pipeline.loading.loader import Loader
from pipeline.loading.normalize import normalized_dims
from pipeline.parts.part_files import load_parts
from pipeline.terminal import log_to_stderr, program, show
from train.checkpoints.checkpoint_store import Checkpoint
from train.policy.observations import Task
from train.policy.policy import read_run
from train.policy.policy_inputs import PolicyInputs
from train.policy.policy_spec import PolicySpec

EXIT_DIFFERENT = 1
_TOLERANCE = 1e-3
"""Largest difference of an action that returned, in standard deviations."""


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
        """Adds the arrays of one step, with a batch axis of 1; None: one side does not have it."""
        if theirs is not None:
            self.type = str(LeafSpec(str(theirs.dtype), theirs.shape[1:]))
        difference = _difference(theirs, ours)
        self.max_difference = max(self.max_difference, difference)
        if difference > tolerance:
            self.steps.append(step)


@dataclasses.dataclass(frozen=True)
class StoredTokens:
    """Returns a dataset's stored tokens in place of an encoder, which is not compared."""

    cameras: tuple[str, ...]
    """Names of the tokens, which the environment shows as it shows images."""

    def __call__(self, images: Sequence[np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns what it is given."""
        return {f"observation/{n}": one for n, one in zip(self.cameras, images, strict=True)}


def compare_episode(
    checkpoint: Checkpoint, spec: PolicySpec, dataset: Dataset, episode: int
) -> list[Comparison]:
    """Compares every array that the model reads along an episode, and the actions that return.

    The chunk that the loader makes of a step goes back through the policy's inverses; the last
    comparison is of its first action and the recorded one, in standard deviations. There is none
    where the loader clips actions.

    Args:
      checkpoint: The checkpoint of the policy.
      spec: What the policy reads and returns.
      dataset: The dataset of the episode.
      episode: Number of the episode in the dataset.

    Raises:
      UserError: There is no such episode, or the dataset lacks a feature that the policy reads.
      RecordError: A record or image is corrupt.
    """
    loader, place = _loader(checkpoint.config.data, spec, dataset)
    inputs = PolicyInputs(spec, StoredTokens(tuple(spec.tokens)))
    keys = [ACTION, *(f"observation/{name}" for name in inputs.expected)]
    found = {key: Comparison(key) for key in (*spec.leaves, ACTION)}
    dims, scale = _compared(spec, dataset)
    for t in range(len(dataset.episode(episode, [ACTION])[ACTION])):
        shown = dataset.step(episode, t, keys)
        training = loader.read(place, [int(dataset.episode_starts[episode]) + t])
        theirs = flatten_dict(training, sep="/")
        task = _task(dataset, episode, shown["instruction"], spec, theirs)
        # At the first step only: like an environment, so the history grows as in a rollout.
        if t == 0:
            inputs.reset(0, task)
        # Instructions may change inside an episode.
        inputs.instruct(0, task)
        inputs.push({0: shown["observation"]})
        policy = inputs.batch([0])
        ours = flatten_dict(policy.arrays, sep="/")
        for key in spec.leaves:
            found[key].add(t, theirs.get(key), ours.get(key))
        recorded = standardize_gripper(shown[ACTION].reshape(1, -1), spec.conventions)
        returned = policy.restore(training[ACTION][:, -1])[:, 0]
        found[ACTION].add(t, (recorded / scale)[:, dims], (returned / scale)[:, dims], _TOLERANCE)
    if spec.normalization == "bounds":
        del found[ACTION]
    return list(found.values())


def table(comparisons: Sequence[Comparison], num_steps: int) -> str:
    """Returns a text table with one line per array."""
    lines = [("array", "type", "largest difference", "steps that differ")]
    for found in comparisons:
        first = f", the first {found.steps[0]}" if found.steps else ""
        steps = f"{len(found.steps)} of {num_steps}{first}"
        lines.append((found.key, found.type, f"{found.max_difference:.3g}", steps))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _difference(theirs: np.ndarray | None, ours: np.ndarray | None) -> float:
    """Returns the largest difference of two arrays; infinite if they cannot be compared."""
    if theirs is None or ours is None or theirs.dtype != ours.dtype or theirs.shape != ours.shape:
        return math.inf
    # Also false for NaN, whose difference is then infinite.
    if np.array_equal(theirs, ours):
        return 0.0
    # float64, because unsigned integers would wrap.
    largest = float(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)).max())
    return largest if math.isfinite(largest) else math.inf


def _compared(spec: PolicySpec, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns True for the dimensions of the action that are learned, and a scale for each; (a)."""
    before, after = spec.before[ACTION], spec.chain.spec[ACTION]
    std = dataset.statistics[ACTION].std
    # A gripper is 1 = open, 0 = close, and constant dimensions have no deviation.
    scale = np.where(normalized_dims(before) & (std > 0), std, np.float32(1))
    return np.array([name not in after.unused for name in before.dims]), scale


def _loader(data: DataConfig, spec: PolicySpec, dataset: Dataset) -> tuple[Loader, int]:
    """Returns the run's loader, with one sample per batch, and the dataset's index in its mixture.

    Other datasets are opened only if their statistics are mixed in, or they have a feature that
    this one lacks.
    """
    place = [part.path for part in data.datasets].index(spec.dataset)
    parts = list(data.datasets)
    # The dataset may have moved since training.
    parts[place] = dataclasses.replace(parts[place], path=dataset.path)
    if data.statistics == "dataset" and not (spec.missing or spec.resized):
        # With its excluded records, which statistics after transforms leave out.
        parts, place = [parts[place].whole()], 0
        data = dataclasses.replace(data, split="all")
    datasets = [
        dataset if number == place else open_dataset(part.path, data.keys_of(part))
        for number, part in enumerate(parts)
    ]
    data = dataclasses.replace(data, datasets=tuple(parts))
    loader = Loader(data, 1, datasets, spec.encode, image_sizes=spec.model.image_sizes)
    return loader.without_random().over_whole_episodes(), place


def _task(
    dataset: Dataset, episode: int, instruction: str, spec: PolicySpec, sample: Mapping[str, Any]
) -> Task:
    """Returns a step's instruction, or its goal images if the loader's sample has them."""
    # The loader's sample says which kind of task it drew.
    keys = [f"observation/{c}" for c in spec.cameras if sample.get(f"task/pad_mask_dict/{c}")]
    if not keys:
        return Task(instruction, {})
    goal = dataset.step(episode, int(sample["task/timestep"][0]), keys)
    return Task("", goal["observation"])


@dataclasses.dataclass(frozen=True)
class Args:
    """Compares what a policy would see along a stored episode with what it was trained on."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or hf://owner/name[@revision] for a policy on the hub."""
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
    log_to_stderr()
    with user_errors_exit():
        args = tyro.cli(
            joined_help(Args), prog=program("train.policy.parity"), use_underscores=True
        )
        load_parts(*args.parts)
        raise SystemExit(_report(args))


def _report(args: Args) -> int:
    checkpoint = read_run(args.run, args.step)
    spec = spec_for(checkpoint, args.dataset)
    dataset = open_dataset(args.dataset or spec.dataset, spec.keys)
    comparisons = compare_episode(checkpoint, spec, dataset, args.episode)
    num_steps = dataset.manifest.episode_lengths[args.episode]
    num_differing = sum(bool(found.steps) for found in comparisons)
    verdict = f"{num_differing} of {len(comparisons)} arrays differ"
    if not num_differing:
        last = comparisons[-1]
        verdict = f"bitwise identical: {len(spec.leaves)} arrays"
        if last.key == ACTION:
            verdict += f", and actions return to {last.max_difference:.2g} standard deviations"
    show(f"{table(comparisons, num_steps)}\n")
    show(f"{verdict}; episode {args.episode} of {dataset.path}, step {checkpoint.step}\n")
    return EXIT_DIFFERENT if num_differing else 0


def spec_for(checkpoint: Checkpoint, directory: str | None) -> PolicySpec:
    """Returns the spec for a dataset of the run, or for any; one that has moved has its name."""
    wanted = directory
    if directory is not None and directory not in checkpoint.datasets:
        is_one = len(checkpoint.datasets) == 1
        wanted = None if is_one else load_manifest(locate(directory, ())[1]).name
    return PolicySpec.of(checkpoint, wanted)


if __name__ == "__main__":
    main()
