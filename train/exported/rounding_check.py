"""Compares the actions of a run with those of its policy in half precision."""

import numpy as np

from train.checkpoints.checkpoint_store import Checkpoint
from train.exported.export_check import example_of, noisy
from train.policy.parity import StoredTokens
from train.policy.policy import Policy
from train.policy.policy_spec import PolicySpec, datasets_to_choose

_NUM_COMPARED = 8
"""Observations for which the actions are compared."""


def describe_difference(before: Checkpoint, after: Checkpoint) -> str:
    """Returns a line with the largest difference between actions of a run and of its policy.

    Both predict chunks for the same images of noise, in the dataset's units.
    """
    own, found = (_chunks(checkpoint) for checkpoint in (before, after))
    difference = np.abs(own - found).max()
    return (
        f"checked: actions, which are up to {np.abs(own).max():.3g}, differ from the run's by up "
        f"to {difference:.2g} in {_NUM_COMPARED} chunks\n"
    )


def _chunks(checkpoint: Checkpoint) -> np.ndarray:
    """Returns chunks (n h a) that a policy predicts for images of noise."""
    dataset = next(iter(datasets_to_choose(checkpoint)), None)
    spec = PolicySpec.of(checkpoint, dataset)
    # Tokens are shown as they are stored: their encoder is the same for both.
    policy = Policy(checkpoint, dataset, encoder=StoredTokens(tuple(spec.tokens)))
    example = example_of(policy)
    needs_goal = spec.data.conditioning == "image_conditioned"
    found = []
    for env in range(_NUM_COMPARED):
        shown = noisy(example, seed=env)
        goal = {name: shown[name] for name in spec.cameras if needs_goal}
        policy.reset(env, "" if needs_goal else "pick up the bowl", goal)
        found.append(policy.infer({env: shown})[env])
    return np.stack(found)
