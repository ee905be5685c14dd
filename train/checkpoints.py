"""Checkpoints: state, loader position and statistics in one Orbax step, asynchronous and atomic."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.position import LoaderState
from train.state import TrainState

DIRECTORY = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a policy needs of a checkpoint."""

    step: int
    """Steps taken."""
    params: dict[str, Any]
    """Nested numpy arrays."""
    datasets: dict[str, Any]
    """As `Loader.describe_datasets` returned it."""


def is_run(directory: pathlib.Path) -> bool:
    """Whether a directory holds the checkpoints of a run."""
    return (directory / DIRECTORY).is_dir()


def read_checkpoint(run_directory: pathlib.Path, step: int | None = None) -> Checkpoint:
    """A checkpoint of a run, on the host.

    Args:
      run_directory: The run's.
      step: Which one; None: the last.

    Raises:
      UserError: Where there is none, or not that one.
    """
    with Checkpoints(run_directory, max_to_keep=None) as checkpoints:
        return checkpoints.read(step)


class Checkpoints:
    """The checkpoints of a run directory; a context manager that waits for the last write."""

    def __init__(self, run_directory: pathlib.Path, max_to_keep: int | None) -> None:
        self._directory = (run_directory / DIRECTORY).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep)
        )

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what was saved is on the disk."""
        self._manager.close()

    def save(self, state: TrainState, loader_state: LoaderState, datasets: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the devices go on meanwhile.

        Args:
          state: Of the training.
          loader_state: After the batches that made it.
          datasets: What a policy needs to know of them, as `Loader.describe_datasets` returns it.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                loader=ocp.args.JsonSave(to_json_values(loader_state)),
                datasets=ocp.args.JsonSave(datasets),
            ),
        )

    def loader_state(self) -> LoaderState:
        """The loader's state in the last checkpoint.

        Raises:
          DataError: Where there is no complete checkpoint, or it was written by another release.
        """
        args = ocp.args.Composite(loader=ocp.args.JsonRestore())
        step = self._latest()
        return from_json_text(
            LoaderState,
            json.dumps(self._manager.restore(step, args=args)["loader"]),
            where=f"{self._directory / str(step)}, loader",
            remedy="Resume with the release that wrote it, or start a new run.",
        )

    def restore(self, like: TrainState) -> TrainState:
        """The state in the last checkpoint.

        Args:
          like: `jax.ShapeDtypeStruct`s with the wanted shardings.

        Raises:
          DataError: Where there is no complete checkpoint.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self._manager.restore(self._latest(), args=args)["state"]

    def read(self, step: int | None) -> Checkpoint:
        """Parameters and datasets of a step, or of the last one; see `read_checkpoint`."""
        steps = sorted(self._manager.all_steps())
        if step is not None and step not in steps:
            raise UserError(
                where=str(self._directory),
                expected=f"a checkpoint of step {step}",
                found=f"the steps {steps}" if steps else "none",
                remedy="Name one that is there.",
            )
        taken = self._latest() if step is None else step
        path = self._directory / str(taken)
        state = ocp.StandardCheckpointer().restore(path / "state")
        args = ocp.args.Composite(datasets=ocp.args.JsonRestore())
        datasets = self._manager.restore(taken, args=args)["datasets"]
        params = jax.tree.map(np.asarray, state["params"])
        return Checkpoint(taken, params, datasets)

    def _latest(self) -> int:
        step = self._manager.latest_step()
        if step is None:
            raise DataError(
                where=str(self._directory),
                expected="a complete checkpoint",
                found="none",
                remedy="Start the run anew with --overwrite.",
            )
        return step
