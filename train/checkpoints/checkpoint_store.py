"""Checkpoints: everything that a resumed run and a policy need, in one Orbax step.

Writing is asynchronous and atomic: a checkpoint is complete or absent. Reading compares everything
with the checksums that were saved beside it.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pipeline.errors import UserError
from pipeline.files import from_json_text, to_json_values
from pipeline.loading.loader_state import LoaderState
from train import distributed
from train.checkpoints.checkpoint_checksums import digest_arrays, digest_json
from train.checkpoints.checkpoint_errors import (
    complete_steps,
    damage,
    reading,
    unwritten,
    writing,
)
from train.checkpoints.packed_arrays import FILE_NAME as PACKED_NAME, read_arrays
from train.train_config import TrainConfig, parse_config
from train.update.train_state import TrainState, averaged_params

DIRECTORY = "checkpoints"
_MOST_LISTED = 3
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Constants:
    """The values that all checkpoints of a run share."""

    config: TrainConfig
    """Config of the run."""
    datasets: dict[str, Any]
    """Features, statistics, conventions and schema hash by dataset path, as returned by
    `Loader.describe_datasets`."""
    vocabulary: bytes
    """SentencePiece model that tokenizes the instructions."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(Constants):
    """Everything a policy needs; it is read from the directory of one checkpoint alone."""

    step: int
    """Training steps taken so far."""
    params: dict[str, Any]
    """Nested numpy arrays: the averaged parameters if the run averages them. Those of a policy in
    half precision are float32 again."""
    address: str | None = None
    """Where on a hub it came from, `hf://owner/name@commit`; None: it is of a directory."""


class Checkpoints:
    """Writes and restores a run's checkpoints; as a context manager, waits for the last write.

    Args:
      run_directory: The run directory.
      keep_last: How many of the latest checkpoints to keep; None: all.
      keep_every: Checkpoints at multiples of this training step are kept forever; None: none are.

    Raises:
      UserError: The checkpoint directory cannot be created; or, at the end of the block, the last
        checkpoint cannot be written.
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
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in ("state", "vocabulary"):
            handlers.add(item, ocp.args.PyTreeSave, array_handler())
        with writing(self._directory):
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=handlers
            )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until the last checkpoint is on disk, and raises what its thread raised."""
        with writing(self._directory):
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
        values: dict[str, Any] = {
            "loader": to_json_values(loader_state),
            "config": to_json_values(constants.config),
            "datasets": constants.datasets,
        }
        # Computed from the arrays in memory, before the training step that follows donates them.
        values["digests"] = {
            "arrays": digest_arrays(trees),
            "values": {name: digest_json(value) for name, value in values.items()},
        }
        # Together: a process that fails here would leave the others waiting in Orbax's barrier.
        distributed.together(lambda: self._make_ready(state))
        with writing(self._directory):
            # Returns once the arrays are copied to the host; the writing goes to a thread.
            is_begun = self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()},
                    **{name: ocp.args.JsonSave(value) for name, value in values.items()},
                ),
            )
        # Orbax returns False, without an error, for a step that is not later than the last.
        if not is_begun and step not in (steps := complete_steps(self._directory)):
            raise UserError(
                where=str(self._directory),
                expected=f"no checkpoint later than step {step}, which is to be saved",
                found=f"the steps {steps}; it was not saved",
                remedy="Move the later checkpoints out of it, then continue with --resume.",
            )

    def _make_ready(self, state: TrainState) -> None:
        """Waits for the previous write, whose error shows here, then checks the free space."""
        with writing(self._directory):
            self._manager.wait_until_finished()
            free = shutil.disk_usage(self._directory).free
        # Checked before, because a disk that fills up during the write costs the whole step.
        if free < (needed := checkpoint_bytes(state)):
            found = f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB free"
            raise unwritten(self._directory, found, "Free space")

    def restore(self, like: TrainState) -> TrainState:
        """Restores the state of the last checkpoint; every process of a run must call this.

        Args:
          like: `jax.ShapeDtypeStruct`s with the shardings to restore to, on any devices.

        Raises:
          UserError: In every process, if there is no checkpoint or any process cannot read it.
          DataError: The checkpoint is corrupt.
        """

        def read() -> tuple[SavedStep, TrainState]:
            saved = SavedStep(self._directory.parent)
            # `like` has shardings, so each device reads its own part.
            to_devices = ocp.checkpoint_utils.construct_restore_args(like)
            return saved, saved.restore("state", like, to_devices)

        # `together`: if one process cannot read, the others would wait forever for its arrays.
        saved, state = distributed.together(read)
        # Every process: arrays sharded across them are gathered for their checksum.
        saved.compare(digest_arrays({"state": state}), "state")
        return state


class SavedStep:
    """Reads parts of a complete checkpoint, and compares each with its checksum.

    Args:
      run_directory: The run directory.
      step: The checkpoint's training step; None: the last checkpoint.

    Raises:
      UserError: The checkpoint does not exist or cannot be read.
      DataError: In each method, if what it reads is corrupt.
    """

    def __init__(self, run_directory: pathlib.Path, step: int | None = None) -> None:
        self._run_directory = run_directory
        root = (run_directory / DIRECTORY).absolute()
        steps = complete_steps(root)
        if not steps or (step is not None and step not in steps):
            wanted = "a complete checkpoint" if step is None else f"a checkpoint of step {step}"
            remedy = "Choose one that exists."
            raise UserError(
                where=str(root),
                expected=wanted,
                found=f"the steps {steps}" if steps else "none",
                remedy=remedy if steps else "Start the run from scratch with --overwrite.",
            )
        self.step = steps[-1] if step is None else step
        self.path = root / str(self.step)
        self.digests: dict[str, str] | None = None
        """The saved checksums, by path; None in a checkpoint from before 0.1.0."""
        folder, items = self.path / "digests", self.path / "_CHECKPOINT_METADATA"
        with reading(self.path):
            # If the folder is missing, Orbax's list of items shows whether it was ever written.
            if folder.is_dir() or "digests" in json.loads(items.read_text())["item_handlers"]:
                digests = json.loads((folder / "metadata").read_text())
                self.digests = {**digests["arrays"], **digests["values"]}
            else:
                _log.warning("%s has no checksums: corruption may go undetected", self.path)

    def text(self, item: str) -> str:
        """Returns an item's JSON text."""
        with reading(self.path):
            text = (self.path / item / "metadata").read_text()
            # Of the parsed values: the format gives whitespace and the order of keys no meaning.
            found = digest_json(json.loads(text))
        self.compare({item: found}, item)
        return text

    def config(self) -> TrainConfig:
        """Returns the config of the run."""
        remedy = "Read it with the release that wrote it."
        where, directory = f"{self.path}, config", self._run_directory
        return parse_config(self.text("config"), where=where, remedy=remedy, directory=directory)

    def check_resumable(self) -> None:
        """Raises a `UserError` if the checkpoint has no optimizer state."""
        with reading(self.path):
            if not self._packed.is_file() and "opt_state" in self._tree("state"):
                return
        run = self._run_directory
        raise UserError(
            where=str(self.path),
            expected="an optimizer state to resume from",
            found="the parameters alone: it was exported as a policy, or pushed to a hub without "
            "--with_optimizer",
            remedy=f"Start a new run from its weights, with --config.pretrained_path={run} and "
            "another --config.save_dir.",
        )

    def arrays(self, item: str, *names: str) -> list[Any]:
        """Returns parts of a saved tree as nested numpy arrays, whatever devices wrote them."""
        paths = [f"{item}/{name}" for name in names]
        if self._packed.is_file():
            with reading(self.path):
                tree = read_arrays(self._packed, *paths).get(item, {})
            # A policy has no average beside its parameters; the checksums show what is missing.
            found = {name: tree.get(name, {}) for name in names}
        else:
            with reading(self.path):
                tree = self._tree(item)
                wanted = {name: tree[name] for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            found = self.restore(item, wanted, as_numpy)
        # Only what was read is compared: `params` alone must not need the optimizer state.
        self.compare(digest_arrays({item: found}), *paths)
        return [found[name] for name in names]

    @property
    def _packed(self) -> pathlib.Path:
        """Returns the file with all arrays of a policy's checkpoint, which others lack."""
        return self.path / PACKED_NAME

    def _tree(self, item: str) -> Any:
        """Returns the structure of a saved tree; no model has to be built to read its weights."""
        return ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.path / item)).tree

    def restore(self, item: str, like: Any, restore_args: Any) -> Any:
        """Returns what `like` has of a saved tree of arrays; `compare` checks it."""
        with reading(self.path):
            # Without `partial_restore` Orbax demands every item of the saved tree.
            args = ocp.args.PyTreeRestore(like, restore_args=restore_args, partial_restore=True)
            return ocp.PyTreeCheckpointHandler().restore(epath.Path(self.path / item), args=args)

    def compare(self, found: Mapping[str, str], *roots: str) -> None:
        """Raises an error if checksums, by path, differ from those saved at and below `roots`."""
        if self.digests is None:
            return
        below = tuple(f"{root}/" for root in roots)
        saved = {path: of for path, of in self.digests.items() if f"{path}/".startswith(below)}
        changed = [
            f"{path} ({saved.get(path, 'none')} then, {found.get(path, 'none')} now)"
            # The union also shows what is missing or new.
            for path in sorted(saved.keys() | found.keys())
            if saved.get(path) != found.get(path)
        ]
        if changed:
            hidden = len(changed) - _MOST_LISTED
            found_now = ", ".join(changed[:_MOST_LISTED])
            found_now += f" and {hidden} more" if hidden > 0 else ""
            raise damage(self.path, "its content as saved", found_now)


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes trees of arrays, without compiling anything."""
    # By default each device writes a slice, which a program cuts that Orbax compiles for every
    # shape: 3 s of CPU time per process for the first checkpoint of a small model.
    types = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=types)


def is_run(directory: pathlib.Path) -> bool:
    """Returns whether a directory holds the checkpoints of a run."""
    return (directory / DIRECTORY).is_dir()


def last_step(run_directory: pathlib.Path) -> int | None:
    """Returns the training step of a run's last complete checkpoint; None if it has none."""
    return max(complete_steps(run_directory / DIRECTORY), default=None)


def checkpoint_bytes(state: Any) -> int:
    """Returns an upper bound for the bytes that a state of arrays or shapes takes on disk."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def read_checkpoint(run_directory: pathlib.Path, step: int | None = None) -> Checkpoint:
    """Reads a checkpoint to the host, whatever devices it was written from.

    Args:
      run_directory: The run directory.
      step: The checkpoint's training step; None: the last checkpoint.

    Raises:
      UserError: The checkpoint does not exist or cannot be read.
      DataError: The checkpoint is corrupt.
    """
    saved = SavedStep(run_directory, step)
    config = saved.config()
    # Without the optimizer state, twice the size of the parameters.
    params, ema = saved.arrays("state", "params", "ema")
    (vocabulary,) = saved.arrays("vocabulary", "bytes")
    return Checkpoint(
        config=config,
        datasets=json.loads(saved.text("datasets")),
        vocabulary=vocabulary.tobytes(),
        step=saved.step,
        # A policy acts with the average where the run has one.
        params=jax.tree.map(_in_single_precision, averaged_params(params, ema, config.frozen)),
    )


def _in_single_precision(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def read_datasets(run_directory: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """Reads only `Checkpoint.datasets`; arguments and errors are those of `read_checkpoint`."""
    return json.loads(SavedStep(run_directory, step).text("datasets"))


def read_loader_state(run_directory: pathlib.Path) -> LoaderState:
    """Reads the loader's state from a run's last checkpoint; errors as in `read_checkpoint`."""
    saved = SavedStep(run_directory)
    remedy = "Resume with the release that wrote it, or start a new run."
    where = f"{saved.path}, loader"
    return from_json_text(LoaderState, saved.text("loader"), where=where, remedy=remedy)


def read_kept_config(run_directory: pathlib.Path) -> TrainConfig | None:
    """Returns the config of the latest checkpoint where it is readable; None if there is none."""
    # From the newest: a corrupt one must not hide the settings of those before it.
    for step in reversed(complete_steps(run_directory / DIRECTORY)):
        with contextlib.suppress(UserError):
            return SavedStep(run_directory, step).config()
    return None


def check_arrays(run_directory: pathlib.Path, step: int | None = None) -> bool:
    """Reads all arrays of a checkpoint; returns whether there were checksums to compare.

    Arguments and errors are those of `read_checkpoint`.
    """
    saved = SavedStep(run_directory, step)
    saved.arrays("state", *(field.name for field in dataclasses.fields(TrainState)))
    saved.arrays("vocabulary", "bytes")
    return saved.digests is not None
