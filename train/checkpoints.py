"""Checkpoints: all that a run goes on from and a policy needs, in one Orbax step.

Asynchronous and atomic: a step is there whole or not at all.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pipeline.errors import DataError, UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.position import LoaderState
from train.config import TrainConfig
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
    return max(_steps(run_directory / DIRECTORY), default=None)


def has_checkpoint(run_directory: pathlib.Path) -> bool:
    """Whether a run has a complete checkpoint."""
    return last_step(run_directory) is not None


def read_checkpoint(run_directory: pathlib.Path, step: int | None = None) -> Checkpoint:
    """A checkpoint of a run, on the host, whatever devices it was written from.

    Args:
      run_directory: The run's.
      step: Which one; None: the last.

    Raises:
      UserError: Where there is none, or not that one.
      DataError: Where it is damaged.
    """
    path = _find(run_directory, step)
    with _damage_named(path):
        config = from_json_text(
            TrainConfig,
            _read_json(path / "config"),
            where=str(path / "config"),
            remedy="Read it with the release that wrote it.",
        )
        params, ema = _read_arrays(path / "state", "params", "ema")
        (vocabulary,) = _read_arrays(path / "vocabulary", "bytes")
        datasets = json.loads(_read_json(path / "datasets"))
    averaged = averaged_params(params, ema, config.frozen)
    return Checkpoint(int(path.name), config, averaged, datasets, vocabulary.tobytes())


def read_datasets(run_directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """The datasets of a checkpoint, as `Checkpoint.datasets`; arguments and errors alike."""
    path = _find(run_directory, step)
    with _damage_named(path):
        return json.loads(_read_json(path / "datasets"))


class Checkpoints:
    """The checkpoints of a run directory; a context manager that waits for the last write.

    Args:
      run_directory: The run's.
      keep_last: Last ones that are kept; None: all.
      keep_every: Steps between those that are kept for good.
    """

    def __init__(
        self,
        run_directory: pathlib.Path,
        keep_last: int | None = None,
        keep_every: int | None = None,
    ) -> None:
        self._directory = (run_directory / DIRECTORY).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last,
                keep_period=keep_every,
                # Else a directory that cannot be made holds the process for minutes at its end.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: Where it cannot be written.
        """
        with self._refusal_named():
            self._manager.close()

    def save(self, state: TrainState, loader_state: LoaderState, constants: Constants) -> None:
        """Begins to write a checkpoint; the devices go on meanwhile.

        Args:
          state: Of the training.
          loader_state: After the batches that made it.
          constants: What else a policy needs.

        Raises:
          UserError: Where the disk has no room for it, or it or the one before cannot be written.
        """
        vocabulary = {"bytes": np.frombuffer(constants.vocabulary, np.uint8)}
        with self._refusal_named():
            self._manager.wait_until_finished()
            self._check_room(state)
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    loader=ocp.args.JsonSave(to_json_values(loader_state)),
                    config=ocp.args.JsonSave(to_json_values(constants.config)),
                    datasets=ocp.args.JsonSave(constants.datasets),
                    vocabulary=ocp.args.StandardSave(vocabulary),
                ),
            )

    def loader_state(self) -> LoaderState:
        """The loader's state in the last checkpoint.

        Raises:
          DataError: Where it is damaged, or was written by another release.
        """
        path = self._latest()
        with _damage_named(path):
            text = _read_json(path / "loader")
        return from_json_text(
            LoaderState,
            text,
            where=f"{path}, loader",
            remedy="Resume with the release that wrote it, or start a new run.",
        )

    def restore(self, like: TrainState) -> TrainState:
        """The state in the last checkpoint.

        Args:
          like: `jax.ShapeDtypeStruct`s with the wanted shardings, of any devices.

        Raises:
          DataError: Where it is damaged.
        """
        path = self._latest()
        with _damage_named(path):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            return self._manager.restore(int(path.name), args=args)["state"]

    def _latest(self) -> pathlib.Path:
        step = self._manager.latest_step()
        if step is None:
            raise DataError(
                where=str(self._directory),
                expected="a complete checkpoint",
                found="none",
                remedy="Start the run anew with --overwrite.",
            )
        return self._directory / str(step)

    def _check_room(self, state: TrainState) -> None:
        needed = checkpoint_bytes(state)
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB free")

    @contextlib.contextmanager
    def _refusal_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            last = self._manager.latest_step()
            kept = "none is complete" if last is None else f"that of step {last} is complete"
            raise UserError(
                where=str(self._directory),
                expected="a checkpoint that can be written",
                found=f"{' '.join(str(error).split())[:300]} ({kept})",
                remedy="Free space or mend the disk, then go on with --resume.",
            ) from error


def checkpoint_bytes(state: Any) -> int:
    """Bytes that a state of arrays or shapes takes on the disk, at most."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


@contextlib.contextmanager
def _damage_named(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (UserError, jax.errors.JaxRuntimeError):
        raise
    except PermissionError as error:
        raise UserError(
            where=str(path),
            expected="a checkpoint that can be read",
            found=str(error),
            remedy="Give this user the right to read it.",
        ) from error
    except Exception as error:  # Orbax raises even `Exception` itself
        cause = error.__cause__ or error
        raise DataError(
            where=str(path),
            expected="a whole checkpoint of this release",
            found=f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
            remedy="Check the disk and read it again; if it stays so, move that directory away: "
            "the checkpoint before it, if there is one, is then the last.",
        ) from error


def _find(run_directory: pathlib.Path, step: int | None) -> pathlib.Path:
    root = (run_directory / DIRECTORY).absolute()
    steps = _steps(root)
    if not steps or (step is not None and step not in steps):
        raise UserError(
            where=str(root),
            expected="a complete checkpoint" if step is None else f"a checkpoint of step {step}",
            found=f"the steps {steps}" if steps else "none",
            remedy="Name one that is there.",
        )
    return root / str(steps[-1] if step is None else step)


def _steps(root: pathlib.Path) -> list[int]:
    """Of complete checkpoints; those under way have other names."""
    if not root.is_dir():
        return []
    return sorted(int(name) for name in os.listdir(root) if name.isdecimal())


def _read_json(item: pathlib.Path) -> str:
    return (item / "metadata").read_text()


def _read_arrays(item: pathlib.Path, *names: str) -> list[Any]:
    """Parts of a saved tree as numpy arrays."""
    handler = ocp.PyTreeCheckpointHandler()
    tree: Any = handler.metadata(epath.Path(item)).tree
    wanted = {name: tree[name] for name in names}
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    restored = ocp.Checkpointer(handler).restore(item, args=args)
    return [restored[name] for name in names]
