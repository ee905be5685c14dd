"""Checkpoints: state, loader position and statistics in one Orbax step, asynchronous and atomic."""

import json
import pathlib
from typing import Any

import orbax.checkpoint as ocp

from pipeline.errors import DataError
from pipeline.files import from_json_text, to_json_values
from pipeline.position import LoaderState
from train.state import TrainState

DIRECTORY = "checkpoints"


class Checkpoints:
    """The checkpoints of a run directory; a context manager that waits for the last write."""

    def __init__(self, run_directory: pathlib.Path, max_to_keep: int) -> None:
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
