"""Reads one complete checkpoint from disk, and verifies its checksums."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pipeline.errors import DataError
from pipeline.files import from_json_text
from pipeline.loading.loader_state import LoaderState
from train.checkpoints.checkpoint_checksums import (
    MISSING,
    Digests,
    changes,
    digest_arrays,
    digest_json,
)
from train.checkpoints.checkpoint_errors import damage, reading
from train.train_config import TrainConfig, parse_config
from train.update.train_state import TrainState

STATE = ("step", "params", "opt_state", "ema")
"""The fields of a `TrainState`."""
_MOST_NAMED = 3
_log = logging.getLogger(__name__)


class SavedStep:
    """Reads a complete checkpoint from disk; what is read is verified by its checksums.

    Args:
      path: The directory of the checkpoint.

    Raises:
      UserError: It cannot be read.
      DataError: In each method, if what it reads is corrupt.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.step = int(path.name)
        self._digests: Digests | None = None
        with reading(path):
            # Checkpoints of earlier releases have none.
            if (path / "digests").is_dir():
                self._digests = self._read_digests()
            else:
                _log.warning("%s has no checksums: corruption may go undetected", path)

    @property
    def has_digests(self) -> bool:
        """Returns whether it has checksums, which reveal corruption that reading would miss."""
        return self._digests is not None

    def config(self) -> TrainConfig:
        """Returns the config of the run."""
        remedy = "Read it with the release that wrote it."
        return parse_config(self._text("config"), where=f"{self.path}, config", remedy=remedy)

    def datasets(self) -> dict[str, Any]:
        """Returns the datasets' descriptions, by path, for `Checkpoint.datasets`."""
        values = json.loads(self._text("datasets"))
        if (
            not isinstance(values, dict)
            or not values
            or not all(isinstance(of_each, dict) for of_each in values.values())
        ):
            raise damage(self.path, "a map of each dataset, by path", "another JSON value")
        return values

    def loader_state(self) -> LoaderState:
        """Returns the loader's state after the batches that led to this checkpoint."""
        remedy = "Resume with the release that wrote it, or start a new run."
        return from_json_text(
            LoaderState, self._text("loader"), where=f"{self.path}, loader", remedy=remedy
        )

    def arrays(self, item: str, *names: str) -> list[Any]:
        """Reads parts of a saved tree as nested numpy arrays."""
        with reading(self.path):
            found = _read_arrays(self.path / item, *names)
        # Only what was read is compared: reading `params` alone must not need the optimizer state.
        self.check_arrays({item: dict(zip(names, found, strict=True))})
        return found

    def check_arrays(self, trees: Mapping[str, Any]) -> None:
        """Raises an error if arrays differ from the saved ones; every process must call this.

        Args:
          trees: Trees by item, each complete or with some of its parts.
        """
        if self._digests is None:
            return
        found = digest_arrays(trees)
        # The saved paths begin with the item's name, such as `state/params/...`.
        parts = tuple(f"{item}/{name}" for item, tree in trees.items() for name in _names(tree))
        saved = {
            path: digest
            for path, digest in self._digests.arrays.items()
            # "/" behind the name, so that `ema` does not match `ema2`.
            if path in parts or path.startswith(tuple(f"{part}/" for part in parts))
        }
        changed = changes(saved, found)
        if changed:
            more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
            raise damage(self.path, "its arrays as saved", ", ".join(changed[:_MOST_NAMED]) + more)

    def _read_digests(self) -> Digests:
        text = (self.path / "digests" / "metadata").read_text()
        try:
            return from_json_text(Digests, text, where="", remedy="")
        except DataError as error:
            raise damage(self.path, "its digests", error.found) from error

    def _text(self, name: str) -> str:
        """Returns the JSON text of an item."""
        with reading(self.path):
            text = (self.path / name / "metadata").read_text()
            # Of the parsed values: the format gives whitespace and the order of keys no meaning.
            found = digest_json(json.loads(text))
        saved = found if self._digests is None else self._digests.values.get(name, MISSING)
        if saved != found:
            raise damage(self.path, f"{name} as saved, {saved}", found)
        return text


def _names(tree: Any) -> list[str]:
    """Returns the names of the parts of a state or a dictionary."""
    if isinstance(tree, TrainState):
        # A state from `restore`, not a dictionary: its fields are always the same four.
        return list(STATE)
    return list(tree)


def _read_arrays(item: pathlib.Path, *names: str) -> list[Any]:
    """Reads parts of a saved tree as numpy arrays."""
    handler = ocp.PyTreeCheckpointHandler()
    # The tree is read from the checkpoint, so no model has to be built to read its weights.
    tree: Any = handler.metadata(epath.Path(item)).tree
    wanted = {name: tree[name] for name in names}
    # As numpy arrays: the devices of the run that wrote them need not exist here.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    # Without `partial_restore` Orbax demands every item of the saved tree.
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
    restored = ocp.Checkpointer(handler).restore(item, args=args)
    return [restored[name] for name in names]
