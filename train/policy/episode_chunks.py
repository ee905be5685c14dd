"""`octograin inspect DST --rerun FILE --run RUN`: predicts chunks along a stored episode."""

import os
from collections.abc import Mapping
from typing import Any

from pipeline.data.conventions import restore_gripper
from pipeline.data.dataset import Dataset
from pipeline.data.schema import ACTION
from pipeline.errors import UserError
from pipeline.inspection.__main__ import inspect
from pipeline.inspection.rerun_recording import Chunk
from train.policy.parity import StoredTokens, spec_for
from train.policy.policy import Policy, read_run
from train.policy.policy_spec import PolicySpec


def main() -> None:
    """Runs `octograin inspect` with the policy of a run."""
    inspect(predict_chunks)


def predict_chunks(
    run: str | os.PathLike[str], dataset: Dataset, episode: int, step: int | None = None
) -> list[Chunk]:
    """Returns a chunk for every `action_horizon` steps of an episode, so that none overlap.

    The policy is shown every step as an environment would show it; the tokens that it reads are
    those of the dataset.

    Args:
      run: Run directory, or hf://owner/name[@revision].
      dataset: The dataset of the episode: one of the run's, or one of the same features.
      episode: Number of the episode, from 0.
      step: Training step of the checkpoint; None: the last one.

    Returns:
      (step, actions float32 (h a)) in the dataset's units, with its commands for grippers.

    Raises:
      UserError: There is no run or no such checkpoint, or the dataset does not fit it.
      DataError: A checkpoint or a record is corrupt.
    """
    checkpoint = read_run(run, step)
    spec = spec_for(checkpoint, dataset.path)
    _check_action(run, dataset, spec)
    policy = Policy(checkpoint, spec.dataset, encoder=StoredTokens(tuple(spec.tokens)))
    keys = [f"observation/{name}" for name in policy.expected]
    chunks = []
    for t in range(dataset.manifest.episode_lengths[episode]):
        shown = dataset.step(episode, t, keys)
        instruction, goal = _task(dataset, episode, shown["instruction"], spec)
        if t == 0:
            policy.reset(0, instruction, goal)
        # Instructions may change inside an episode.
        policy.instruct(0, instruction, goal)
        if t % policy.action_horizon:
            policy.observe({0: shown["observation"]})
        else:
            actions = policy.infer({0: shown["observation"]})[0]
            chunks.append((t, restore_gripper(actions, policy.conventions)))
    return chunks


def _check_action(run: str | os.PathLike[str], dataset: Dataset, spec: PolicySpec) -> None:
    """Checks that the run predicts the dimensions that the dataset records."""
    theirs, ours = spec.features[ACTION].shape, dataset.feature(ACTION).shape
    if theirs != ours:
        raise UserError(
            where=f"--run {run}",
            expected=f"a policy of actions {list(ours)}, as {dataset.path} has them",
            found=f"{list(theirs)}",
            remedy="Name a run that was trained on data of this robot.",
        )


def _task(
    dataset: Dataset, episode: int, instruction: str, spec: PolicySpec
) -> tuple[str, Mapping[str, Any]]:
    """Returns the instruction, or the images of the last step for a policy that reads goals."""
    if spec.data.conditioning != "image_conditioned":
        return instruction, {}
    last = dataset.manifest.episode_lengths[episode] - 1
    keys = [f"observation/{name}" for name in spec.cameras]
    return "", dataset.step(episode, last, keys)["observation"]
