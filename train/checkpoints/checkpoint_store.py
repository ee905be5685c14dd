"""Checkpoints: everything that a resumed run and a policy need, in one Orbax step.

Writing is asynchronous and atomic: a checkpoint is complete or absent.
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
from pipeline.loading.loader_state import LoaderState
from train import distributed
from train.checkpoints.checkpoint_checksums import Digests
from train.checkpoints.checkpoint_errors import complete_steps, reading, unwritten, writing
from train.checkpoints.checkpoint_reader import STATE, SavedStep
from train.train_config import TrainConfig
from train.update.train_state import TrainState, averaged_params

DIRECTORY = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything a policy needs; it is read from the directory of one checkpoint alone."""

    step: int
    """Training steps taken so far."""
    config: TrainConfig
    """Config of the run."""
    params: dict[str, Any]
    """Nested numpy arrays: the averaged parameters if the run averages them."""
    datasets: dict[str, Any]
    """Features, statistics, conventions and schema hash by dataset path, as returned by
    `Loader.describe_datasets`."""
    vocabulary: bytes
    """SentencePiece model that tokenizes the instructions."""


@dataclasses.dataclass(frozen=True)
class Constants:
    """The values that all checkpoints of a run share."""

    config: TrainConfig
    """Config of the run."""
    datasets: dict[str, Any]
    """The descriptions that `Loader.describe_datasets` returns, by dataset path."""
    vocabulary: bytes
    """SentencePiece model that tokenizes the instructions."""


def is_run(directory: pathlib.Path) -> bool:
    """Returns whether a directory holds the checkpoints of a run."""
    return (directory / DIRECTORY).is_dir()


def last_step(run_directory: pathlib.Path) -> int | None:
    """Returns the training step of a run's last complete checkpoint; None if it has none."""
    # By the directory's names alone: no manager has to be opened to find the last step.
    return max(complete_steps(run_directory / DIRECTORY), default=None)


def has_checkpoint(run_directory: pathlib.Path) -> bool:
    """Returns whether a run has a complete checkpoint."""
    return last_step(run_directory) is not None


def read_checkpoint(run_directory: pathlib.Path, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint to the host, whatever devices it was written from.

    Args:
      run_directory: The run directory.
      step: The checkpoint's training step; None: the last checkpoint.

    Raises:
      UserError: The checkpoint does not exist or cannot be read.
      DataError: The checkpoint is corrupt.
    """
    kept = SavedStep(_find(run_directory, step))
    config = kept.config()
    # Without the optimizer state, twice the size of the parameters.
    params, ema = kept.arrays("state", "params", "ema")
    (vocabulary,) = kept.arrays("vocabulary", "bytes")
    # A policy acts with the average where the run has one.
    averaged = averaged_params(params, ema, config.frozen)
    return Checkpoint(kept.step, config, averaged, kept.datasets(), vocabulary.tobytes())


def read_datasets(run_directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Reads only `Checkpoint.datasets`; arguments and errors are those of `read_checkpoint`."""
    return SavedStep(_find(run_directory, step)).datasets()


def read_loader_state(run_directory: pathlib.Path) -> LoaderState:
    """Reads the loader's state from a run's last checkpoint.

    Raises:
      UserError: There is no checkpoint, or it cannot be read.
      DataError: The checkpoint is corrupt, or was written by another release.
    """
    return SavedStep(_find(run_directory, None)).loader_state()


def read_kept_config(run_directory: pathlib.Path) -> TrainConfig | None:
    """Returns the config of the latest checkpoint where it is readable; None if there is none."""
    root = (run_directory / DIRECTORY).absolute()
    # From the newest: a corrupt one must not hide the settings of those before it.
    for step in reversed(complete_steps(root)):
        try:
            return SavedStep(root / str(step)).config()
        except UserError:
            continue
    return None


def check_arrays(run_directory: pathlib.Path) -> bool:
    """Reads all arrays of a run's last checkpoint; returns whether it has checksums to verify.

    Raises:
      UserError: There is no checkpoint, or it cannot be read.
      DataError: The checkpoint is corrupt.
    """
    kept = SavedStep(_find(run_directory, None))
    # Reading verifies the checksums.
    kept.arrays("state", *STATE)
    kept.arrays("vocabulary", "bytes")
    return kept.has_digests


class Checkpoints:
    """Writes and restores a run's checkpoints; as a context manager, waits for the last write.

    Args:
      run_directory: The run directory.
      keep_last: How many of the latest checkpoints to keep; None: all.
      keep_every: Checkpoints at multiples of this training step are kept forever; None: none are.

    Raises:
      UserError: The checkpoint directory cannot be created.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        # Orbax refuses relative paths.
        self._directory = (run_directory / DIRECTORY).absolute()
        options = ocp.CheckpointManagerOptions(
            # Steps that `keep_period` divides stay, whatever `max_to_keep` says.
            max_to_keep=keep_last,
            keep_period=keep_every,
            # Otherwise a directory that cannot be created blocks the process for minutes when it
            # exits.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with writing(self._directory):
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=_handlers()
            )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
          UserError: It cannot be written.
        """
        with writing(self._directory):
            # Waits for the write that runs in the background, and raises what it raised.
            self._manager.close()

    def save(self, state: TrainState, loader_state: LoaderState, constants: Constants) -> None:
        """Starts writing a checkpoint, unless this step has one; the devices keep training.

        Args:
          state: The training state.
          loader_state: The loader's state after the batches that led to `state`.
          constants: Everything else that a policy needs.

        Raises:
          UserError: The disk is too full, this checkpoint or the one before cannot be written, or
            there is a later one.
        """
        step = int(state.step)
        # A stop right after a regular save must not write the same step again.
        if step == self._manager.latest_step():
            return
        trees = {
            "state": state,
            # As an array: JSON would need the bytes as text.
            "vocabulary": {"bytes": np.frombuffer(constants.vocabulary, np.uint8)},
        }
        values = {
            "loader": to_json_values(loader_state),
            "config": to_json_values(constants.config),
            "datasets": constants.datasets,
        }
        # Computed from the arrays in memory, before the step that follows donates them.
        digests = to_json_values(Digests.of(trees, values))
        # Together: a process that fails here would leave the others waiting in Orbax's barrier.
        distributed.together(lambda: self._make_ready(state))
        with writing(self._directory):
            # Returns once the arrays are copied to the host; the writing goes to a thread.
            is_begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()},
                    **{name: ocp.args.JsonSave(value) for name, value in values.items()},
                    digests=ocp.args.JsonSave(digests),
                ),
            )
        # Orbax returns False, without an error, for a step that is not later than the last.
        if not is_begun:
            self._check_complete(step)

    def restore(self, like: TrainState) -> TrainState:
        """Restores the state of the last checkpoint; every process of a run must call this.

        Args:
          like: `jax.ShapeDtypeStruct`s with the shardings to restore to, on any devices.

        Raises:
          UserError: In every process, if there is no checkpoint or any process cannot read it.
          DataError: The checkpoint is corrupt.
        """
        # `together`: if one process cannot read, the others would wait forever for its arrays.
        kept, state = distributed.together(lambda: self._read(like))
        # Every process: arrays sharded across them are gathered for their checksum.
        kept.check_arrays({"state": state})
        return state

    def _read(self, like: TrainState) -> tuple[SavedStep, TrainState]:
        kept = SavedStep(_find(self._directory.parent, None))
        with reading(kept.path):
            # `like` has shardings, so each device reads its own part.
            to_devices = ocp.checkpoint_utils.construct_restore_args(like)
            restore = ocp.args.PyTreeRestore(like, restore_args=to_devices)
            args = ocp.args.Composite(state=restore)
            return kept, self._manager.restore(kept.step, args=args)["state"]

    def _make_ready(self, state: TrainState) -> None:
        """Waits for the previous write, then checks the free space for this one."""
        with writing(self._directory):
            # The previous checkpoint must be whole before room is counted, and its error must show
            # here.
            self._manager.wait_until_finished()
            self._check_room(state)

    def _check_room(self, state: TrainState) -> None:
        needed = checkpoint_bytes(state)
        free = shutil.disk_usage(self._directory).free
        # Checked before, because a disk that fills up during the write costs the whole step.
        if free < needed:
            found = f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB free"
            raise unwritten(self._directory, found, "Free space")

    def _check_complete(self, step: int) -> None:
        """Raises an error if Orbax skipped a step that was not saved before."""
        steps = complete_steps(self._directory)
        if step in steps:
            return
        raise UserError(
            where=str(self._directory),
            expected=f"no checkpoint later than step {step}, which is to be saved",
            found=f"the steps {steps}; it was not saved",
            remedy="Move the later checkpoints out of it, then continue with --resume.",
        )


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """Returns handlers that write an array from one of the devices that hold it whole.

    By default Orbax lets each device write a slice, and compiles a program for every shape to cut
    it: the first checkpoint of a small model took 3 s of CPU time in each process.
    """
    types = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ("state", "vocabulary"):
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
        handlers.add(item, ocp.args.PyTreeSave, handler)
        handlers.add(item, ocp.args.PyTreeRestore, handler)
    return handlers


def checkpoint_bytes(state: Any) -> int:
    """Returns an upper bound for the bytes that a state of arrays or shapes takes on disk."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _find(run_directory: pathlib.Path, step: int | None) -> pathlib.Path:
    root = (run_directory / DIRECTORY).absolute()
    steps = complete_steps(root)
    if not steps or (step is not None and step not in steps):
        raise UserError(
            where=str(root),
            expected="a complete checkpoint" if step is None else f"a checkpoint of step {step}",
            found=f"the steps {steps}" if steps else "none",
            remedy="Choose one that exists."
            if steps
            else "Start the run from scratch with --overwrite.",
        )
    return root / str(steps[-1] if step is None else step)
