"""Compares an exported program with the policy that it was exported from."""

from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from train.exported.exported_settings import ExportedSettings
from train.exported.program_export import ExportedProgram
from train.policy.observations import Task
from train.policy.policy import Policy
from train.policy.policy_inputs import PolicyInputs


def example_of(policy: Policy) -> dict[str, np.ndarray]:
    """Returns an example of an observation that no transform refuses: zeros may be no rotation."""
    rng = np.random.default_rng(0)
    return {
        name: one if one.any() or one.dtype.kind != "f" else rng.normal(size=one.shape)
        for name, one in policy.example_observation().items()
    }


def noisy(observation: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns an observation whose images are noise: grey ones would hide differences."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, one.shape, np.uint8) if one.dtype == np.uint8 else one
        for name, one in observation.items()
    }


def largest_difference(
    policy: Policy,
    program: ExportedProgram,
    compiled: jax.stages.Compiled,
    settings: ExportedSettings,
    rows: Mapping[str, np.ndarray],
) -> float:
    """Returns the largest difference between a chunk of the program and one of the policy.

    Args:
      policy: The policy; its environment 0 is reset.
      program: The program that was exported.
      compiled: The same, compiled.
      settings: Settings of the exported policy.
      rows: Its arrays with a row for each text.
    """
    observation = noisy(example_of(policy))
    goal = {name: observation[name] for name in settings.goal_cameras}
    text = "" if goal else next(iter(settings.texts), "")
    size = policy.config.batch_size
    inputs = PolicyInputs(policy.spec)
    inputs.reset(0, Task(text, goal))
    inputs.push({0: observation})
    batch = inputs.batch([0] * size)
    flat = flatten_dict(batch.arrays, sep="/")
    arguments = {
        "batch": {name: flat[name] for name in policy.spec.leaves},
        "key": jax.random.key_data(jax.random.key(policy.config.seed)),
        "envs": np.zeros(size, np.uint32),
        "counts": np.zeros(size, np.uint32),
    }
    if rows:
        row = settings.texts.index(text)
        arguments["embeddings"] = rows["embeddings"][[row] * size]
    found = np.asarray(compiled(parameters=list(program.parameters), **arguments))
    policy.reset(0, text, goal)
    expected = policy.infer({0: observation})[0]
    return float(np.abs(batch.restore(found)[0] - expected).max())
