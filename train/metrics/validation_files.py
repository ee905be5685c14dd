"""Reads and writes the files of a run's validations: `validation.jsonl` and `episode.npz`."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.checksums import from_json, to_json_line
from pipeline.files import (
    Measured,
    from_json_text,
    temporary_path,
    write_text_atomically,
    writing,
)

VALIDATION_NAME = "validation.jsonl"
EPISODE_NAME = "episode.npz"
_FRAMES = "frames_"
"""Prefix of a camera's images in that file, before its number: cameras may differ in size."""


@dataclasses.dataclass(frozen=True)
class ValidationMetrics:
    """One line of `validation.jsonl`.

    Errors are absolute errors of normalised actions, averaged over the real actions of sampled
    chunks.
    """

    step: int
    """Training steps taken."""
    loss: Measured
    """Loss, computed from the same samples and the same noise at every validation."""
    action_error: Measured
    """Error over all dimensions."""
    by_dim: dict[str, Measured]
    """Error of each dimension, by name, such as `delta_x`."""
    by_task: dict[str, Measured]
    """Error over all dimensions for each task, by instruction."""
    num_samples: int
    """Number of samples."""
    constant_error: Measured = math.nan
    """Error of the best constant action, the median of these samples' actions: a model that has
    only learned their centre reaches it. NaN: not measured, in files of version 0.1.0."""
    constant_by_dim: dict[str, Measured] = dataclasses.field(default_factory=dict)
    """The best constant action's error for each dimension, by name; empty: not measured."""


@dataclasses.dataclass(frozen=True)
class EpisodePrediction:
    """The chunks that a model predicts along an episode; the arrays of `episode.npz`."""

    dataset: str
    """Path of the dataset."""
    episode: int
    """Number of the episode in the dataset."""
    is_held_out: bool
    """Whether the episode was held out from training."""
    task: str
    """Instruction of the episode."""
    dims: tuple[str, ...]
    """Names of the action's dimensions."""
    actions: np.ndarray
    """Recorded actions, float32 (steps, dims), in the dataset's units; the gripper is 1 = open."""
    chunks: np.ndarray
    """Chunk sampled at each step, float32 (steps, horizon, dims), in the same units."""
    frames: tuple[np.ndarray, ...]
    """Images of each camera at a few steps, uint8 (frames, height, width, 3)."""
    frame_steps: np.ndarray
    """Steps of these images, int32 (frames), as indices into `actions`."""

    def save(self, directory: pathlib.Path) -> None:
        """Writes `episode.npz` into a run directory."""
        fields = dataclasses.asdict(self)
        fields |= {f"{_FRAMES}{n}": images for n, images in enumerate(fields.pop("frames"))}
        arrays = {key: np.asarray(value) for key, value in fields.items()}
        path = directory / EPISODE_NAME
        # Not the final name: a reader must never find half a file.
        unfinished = temporary_path(path)
        with writing(path), unfinished.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            # Flushed before the rename, so that the file is whole under its name.
            file.flush()
            unfinished.replace(path)


def append_validation(directory: pathlib.Path, metrics: ValidationMetrics) -> None:
    """Appends to the run's `validation.jsonl`; lines of this training step or later are dropped."""
    # A resumed run may validate at a step again.
    kept = [one for one in read_validation(directory) if one.step < metrics.step]
    _write_validation(directory, [*kept, metrics])


def drop_validation(directory: pathlib.Path, after: int) -> None:
    """Drops the lines of `validation.jsonl` whose training steps will be repeated.

    Args:
      directory: The run directory.
      after: Training steps taken so far; lines of later ones are dropped.

    Raises:
      UserError: The file cannot be read or written.
    """
    lines = read_validation(directory)
    kept = [one for one in lines if one.step <= after]
    if len(kept) < len(lines):
        _write_validation(directory, kept)


def _write_validation(directory: pathlib.Path, lines: Sequence[ValidationMetrics]) -> None:
    path = directory / VALIDATION_NAME
    with writing(path):
        write_text_atomically(path, "".join(map(to_json_line, lines)))


def read_validation(directory: pathlib.Path) -> list[ValidationMetrics]:
    """Reads the lines of a run's `validation.jsonl`; empty if there is no such file.

    Raises:
      DataError: A line is corrupt.
    """
    path = directory / VALIDATION_NAME
    text = path.read_bytes() if path.exists() else b""
    # A text without lines is no line, not an empty one.
    lines = text.removesuffix(b"\n").split(b"\n") if text else []
    return [_to_metrics(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _to_metrics(line: bytes, where: str) -> ValidationMetrics:
    remedy = "Delete that line."
    text = json.dumps(from_json(line, where=where, remedy=remedy))
    return from_json_text(ValidationMetrics, text, where=where, remedy=remedy)


def read_episode(directory: pathlib.Path) -> EpisodePrediction | None:
    """Reads the run's `episode.npz`; None if it has none."""
    path = directory / EPISODE_NAME
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return EpisodePrediction(
            dataset=str(arrays["dataset"]),
            episode=int(arrays["episode"]),
            is_held_out=bool(arrays["is_held_out"]),
            task=str(arrays["task"]),
            dims=tuple(map(str, arrays["dims"])),
            actions=arrays["actions"],
            chunks=arrays["chunks"],
            frames=_read_frames(arrays),
            frame_steps=arrays["frame_steps"],
        )


def _read_frames(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns each camera's images; earlier releases stored all cameras in one array."""
    if "frames" in arrays:
        # (steps, cameras, ...) became one array per camera.
        return tuple(np.moveaxis(arrays["frames"], 1, 0))
    # Names with digits alone: `frame_steps` begins alike.
    numbers = range(sum(name.removeprefix(_FRAMES).isdecimal() for name in arrays))
    return tuple(arrays[f"{_FRAMES}{number}"] for number in numbers)
