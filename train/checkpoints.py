"""Checkpoints: state and loader position in one Orbax step, asynchronous and atomic."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from pipeline.errors import DataError
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

    def save(self, state: TrainState, loader_state: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the devices go on meanwhile."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), loader=ocp.args.JsonSave(loader_state)
            ),
        )

    def loader_state(self) -> dict[str, Any]:
        """The loader's state in the last checkpoint.

        Raises:
          DataError: Where there is no complete checkpoint.
        """
        args = ocp.args.Composite(loader=ocp.args.JsonRestore())
        return self._manager.restore(self._latest(), args=args)["loader"]

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
