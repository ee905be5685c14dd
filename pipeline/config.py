"""What a loader needs to know, as frozen data."""

import dataclasses
import math
from typing import Literal

import tyro

from pipeline.schema import ACTION

Normalization = Literal["normal", "bounds"]


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset of the mixture."""

    path: str
    """Dataset directory, the one that holds dataset.json."""
    weight: float | None = None
    """Share of the samples, relative to the other weights; None for all of them: as many as each
    has steps."""
    commands: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Shell commands that make the directory; shown where it is missing."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """From dataset directories to batches."""

    datasets: tuple[DatasetConfig, ...]
    """The mixture."""
    vocabulary: str
    """SentencePiece model of T5: a path, or hf://owner/name/file."""
    observations: tuple[str, ...] = ("image_primary", "image_wrist", "proprio")
    """Features below observation/ that a batch holds; columns not named are not read."""
    window_size: int = 2
    """Steps of history, the current one included."""
    action_horizon: int = 4
    """Actions of a chunk."""
    normalization: Normalization = "normal"
    """`normal`: zero mean, unit deviation; `bounds`: 1st to 99th percentile onto [-1, 1]."""
    max_text_length: int = 16
    """Tokens of an instruction, the end token included."""
    seed: int = 42
    """Of the order of the samples."""
    num_threads: int = 2
    """Threads that make batches, one each at a time; 0: the training thread does."""
    prefetch_batches: int = 4
    """Batches made ahead, those under way included: what bounds the loader's memory."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the features that are read: the action, then the observations."""
        return (ACTION, *(f"observation/{name}" for name in self.observations))

    def __post_init__(self) -> None:
        """Checks ranges and that weights are given for all datasets or none."""
        weights = [dataset.weight for dataset in self.datasets]
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if not self.datasets:
            raise ValueError("datasets is empty: name at least one dataset directory")
        if None in weights and any(weight is not None for weight in weights):
            raise ValueError(f"weights must be given for every dataset or for none, not {weights}")
        if any(weight is not None and not 0 < weight < math.inf for weight in weights):
            raise ValueError(f"weights must be positive and finite, not {weights}")
        for name in ("window_size", "action_horizon", "max_text_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.num_threads <= self.prefetch_batches:
            raise ValueError(
                f"num_threads must be between 0 and prefetch_batches ({self.prefetch_batches}), "
                f"not {self.num_threads}"
            )
