"""What an exported policy reads and predicts; an exported policy holds this code."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.loading.batch import BatchSpec, LeafSpec
from pipeline.loading.transforms.gripper_rules import GripperRule
from pipeline.loading.transforms.normalize_transforms import Normalizer


@dataclasses.dataclass(frozen=True)
class ExportedSettings:
    """The interface of an exported policy; its file has them as Python, in `settings.py`."""

    octograin: str
    """Version that exported the policy."""
    step: int
    """Training step of the checkpoint."""
    address: str | None
    """Where on a hub it came from, with the commit; None: from a directory."""
    dataset: str
    """Path in the run of the dataset whose statistics and conventions are used."""
    conditioning: str
    """How the policy was trained, which decides the tasks that it takes."""
    instructions: tuple[str, ...]
    """The instructions that were exported; empty if the model reads none."""
    texts: tuple[str, ...]
    """The text of each row of the embeddings: the instructions, and the empty one beside goals."""
    conventions: Conventions
    """Meaning of the dataset's values."""
    gripper_rules: tuple[GripperRule, ...]
    """Rules of the run for its grippers."""
    action_dims: tuple[str, ...]
    """Name of each action dimension; empty if the dataset has none."""
    window_size: int
    """Number of steps that the model reads."""
    action_horizon: int
    """Number of actions per chunk."""
    batch_size: int
    """Environments per batch."""
    expected: Mapping[str, LeafSpec]
    """One step of every observation that an environment must provide, by name."""
    example: Mapping[str, np.ndarray]
    """An example of each that is no image."""
    goal_cameras: tuple[str, ...]
    """Observations of which a goal has an image."""
    read: tuple[str, ...]
    """Paths of the arrays that are read from observations, before the transforms."""
    before: BatchSpec
    """Types of a batch of one environment before the transforms."""
    leaves: tuple[str, ...]
    """Paths of the arrays that the model reads."""
    transforms: tuple[Any, ...]
    """The transforms of the run."""
    normalizers: Mapping[str, Normalizer]
    """The normalizers at the end of the chain, by path."""
    key_impl: str
    """Implementation of the noise's random numbers in jax."""
