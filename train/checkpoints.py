"""Checkpoints: all that a run continues from and a policy needs, in one Orbax step.

Asynchronous and atomic: a step is there whole or not at all.
"""

import dataclasses
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pipeline.errors import UserError
from pipeline.files import to_json_values
from pipeline.position import LoaderState
from train import cluster
from train.config import TrainConfig
from train.digests import Digests
from train.failures import complete_steps, reading, unwritten, writing
from train.saved import STATE, SavedStep
from train.state import TrainState, averaged_params

DIRECTORY = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a policy needs; the directory of its step is all that is read for it."""

    step: int
    """Steps taken."""
    config: TrainConfig
    """Of the run."""
    params: dict[str, Any]
    """Nested numpy arrays: the averaged ones where the run averages them."""
    datasets: dict[str, Any]
    """By path: features, statistics, conventions and schema hash, as `Loader.describe_datasets`
    gave them."""
    vocabulary: bytes
    """The SentencePiece model of the instructions."""


@dataclasses.dataclass(frozen=True)
class Constants:
    """What all checkpoints of a run have in common."""

    config: TrainConfig
    """Of the run."""
    datasets: dict[str, Any]
    """As `Loader.describe_datasets` returns it."""
    vocabulary: bytes
    """The SentencePiece model of the instructions."""


def is_run(directory: pathlib.Path) -> bool:
    """Whether a directory holds the checkpoints of a run."""
    return (directory / DIRECTORY).is_dir()


def last_step(run_directory: pathlib.Path) -> int | None:
    """The steps of a run's last complete checkpoint; None where it has none."""
    return max(complete_steps(run_directory / DIRECTORY), default=None)


def has_checkpoint(run_directory: pathlib.Path) -> bool:
    """Whether a run has a complete checkpoint."""
    return last_step(run_directory) is not None


def read_checkpoint(run_directory: pathlib.Path, step: int | None = None) -> Checkpoint:
    """A checkpoint of a run, on the host, whatever devices it was written from.

    Args:
      run_directory: The run's.
      step: Which one; None: the last.

    Raises:
      UserError: Where there is none, or not that one, or it cannot be read.
      DataError: Where it is corrupt.
    """
    kept = SavedStep(_find(run_directory, step))
    config = kept.config()
    params, ema = kept.arrays("state", "params", "ema")
    (vocabulary,) = kept.arrays("vocabulary", "bytes")
    averaged = averaged_params(params, ema, config.frozen)
    return Checkpoint(kept.step, config, averaged, kept.datasets(), vocabulary.tobytes())


def read_datasets(run_directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """The datasets of a checkpoint, as `Checkpoint.datasets`; arguments and errors alike."""
    return SavedStep(_find(run_directory, step)).datasets()


def read_loader_state(run_directory: pathlib.Path) -> LoaderState:
    """The loader's state in the last checkpoint of a run.

    Raises:
      UserError: Where there is none, or it cannot be read.
      DataError: Where it is corrupt, or was written by another release.
    """
    return SavedStep(_find(run_directory, None)).loader_state()


def read_kept_config(run_directory: pathlib.Path) -> TrainConfig | None:
    """The config in the last checkpoint in which it can be read; None where there is no such."""
    root = (run_directory / DIRECTORY).absolute()
    for step in reversed(complete_steps(root)):
        try:
            return SavedStep(root / str(step)).config()
        except UserError:
            continue
    return None


def check_arrays(run_directory: pathlib.Path) -> bool:
    """Reads all arrays of a run's last checkpoint; returns whether it has digests to compare with.

    Raises:
      UserError: Where there is none, or it cannot be read.
      DataError: Where it is corrupt.
    """
    kept = SavedStep(_find(run_directory, None))
    kept.arrays("state", *STATE)
    kept.arrays("vocabulary", "bytes")
    return kept.has_digests


class Checkpoints:
    """The checkpoints of a run directory; a context manager that waits for the last write.

    Args:
      run_directory: The run's.
      keep_last: Last ones that are kept; None: all.
      keep_every: Steps between those that are kept for good.

    Raises:
      UserError: Where their directory cannot be made.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        self._directory = (run_directory / DIRECTORY).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every,
            # Else a directory that cannot be made holds the process for minutes at its end.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with writing(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options)

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: Where it cannot be written.
        """
        with writing(self._directory):
            self._manager.close()

    def save(self, state: TrainState, loader_state: LoaderState, constants: Constants) -> None:
        """Begins to write a checkpoint; the devices continue meanwhile.

        Args:
          state: Of the training.
          loader_state: After the batches that made it.
          constants: What else a policy needs.

        Raises:
          UserError: Where the disk has no room for it, it or the one before cannot be written, or
            there is a later one.
        """
        step = int(state.step)
        trees = {
            "state": state,
            "vocabulary": {"bytes": np.frombuffer(constants.vocabulary, np.uint8)},
        }
        values = {
            "loader": to_json_values(loader_state),
            "config": to_json_values(constants.config),
            "datasets": constants.datasets,
        }
        digests = to_json_values(Digests.of(trees, values))
        cluster.together(lambda: self._make_ready(state))
        with writing(self._directory):
            is_begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                    **{name: ocp.args.JsonSave(value) for name, value in values.items()},
                    digests=ocp.args.JsonSave(digests),
                ),
            )
        if not is_begun:
            self._check_complete(step)

    def restore(self, like: TrainState) -> TrainState:
        """The state in the last checkpoint; every process of a run must ask.

        Args:
          like: `jax.ShapeDtypeStruct`s with the wanted shardings, of any devices.

        Raises:
          UserError: In every process, where there is none, or any cannot read it.
          DataError: Where it is corrupt.
        """
        # A process that cannot read must not leave the others alone with the arrays they gather.
        kept, state = cluster.together(lambda: self._read(like))
        kept.check_arrays({"state": state})
        return state

    def _read(self, like: TrainState) -> tuple[SavedStep, TrainState]:
        kept = SavedStep(_find(self._directory.parent, None))
        with reading(kept.path):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return kept, self._manager.restore(kept.step, args=args)["state"]

    def _make_ready(self, state: TrainState) -> None:
        """Waits for the write before, and looks for room for another."""
        with writing(self._directory):
            self._manager.wait_until_finished()
            self._check_room(state)

    def _check_room(self, state: TrainState) -> None:
        needed = checkpoint_bytes(state)
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            found = f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB free"
            raise unwritten(self._directory, found, "Free space")

    def _check_complete(self, step: int) -> None:
        """Raises where a step that Orbax left out is not there from before."""
        steps = complete_steps(self._directory)
        if step in steps:
            return
        raise UserError(
            where=str(self._directory),
            expected=f"no checkpoint later than step {step}, which is to be saved",
            found=f"the steps {steps}; it was not saved",
            remedy="Move those of another run out of it, then continue with --resume.",
        )


def checkpoint_bytes(state: Any) -> int:
    """Bytes that a state of arrays or shapes takes on the disk, at most."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _find(run_directory: pathlib.Path, step: int | None) -> pathlib.Path:
    root = (run_directory / DIRECTORY).absolute()
    steps = complete_steps(root)
    if not steps or (step is not None and step not in steps):
        raise UserError(
            where=str(root),
            expected="a complete checkpoint" if step is None else f"a checkpoint of step {step}",
            found=f"the steps {steps}" if steps else "none",
            remedy="Name one that is there."
            if steps
            else "Start the run from scratch with --overwrite.",
        )
    return root / str(steps[-1] if step is None else step)
