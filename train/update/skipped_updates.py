"""Watches for skipped updates: saves their batches, and ends a run after too many in a row."""

import contextlib
import itertools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pipeline.errors import UserError
from pipeline.loading.loader import Loader
from train.metrics.step_metrics import StepMetrics

DIRECTORY = "skipped"
"""Name of the folder in the run directory."""
_MOST_SAVED = 4
"""Largest number of batches that a process saves; a batch may have hundreds of MB."""
_log = logging.getLogger("train.run")


class SkippedUpdates:
    """Counts skipped updates in a row: a rare overflow is no reason to end a run.

    Args:
      loader: The run's loader; it makes a batch again, which depends only on the training step.
      most: The largest number in a row.
      run_directory: The run directory; the first few batches are saved in `skipped/` in it.
    """

    def __init__(self, loader: Loader, most: int, run_directory: pathlib.Path) -> None:
        self._loader = loader
        self._most = most
        self._folder = run_directory / DIRECTORY
        self._in_a_row = 0

    def note(self, row: StepMetrics) -> None:
        """Takes the metrics of each training step; saves this process's rows of a skipped batch.

        Raises:
          UserError: Too many updates in a row were skipped, or the batch cannot be made again.
        """
        if row.applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        batch = self._keep_batch(row.step)
        found = f"loss {row.loss}, grad_norm {row.grad_norm}"
        _log.warning("step %d: %s; its update is skipped%s", row.step, found, batch)
        if self._in_a_row > self._most:
            raise UserError(
                where=f"step {row.step}, batch {row.batch_fingerprint}",
                expected=f"a finite loss and gradient after {self._most} skipped updates in a row",
                found=found + batch,
                remedy="Look at the batch; or start a new run with a lower "
                "optimizer.learning_rate.",
            )

    def _keep_batch(self, step: int) -> str:
        """Saves the batch of a training step; returns where it is, and what in it is not finite."""
        # Read again: the batch that was used is not kept until its metrics are read.
        with contextlib.closing(self._loader.batches(step - 1)) as batches:
            arrays = next(itertools.islice(batches, 1)).arrays
        bad = non_finite(arrays)
        report = f"; not finite in the batch: {', '.join(bad)}" if bad else "; the batch is finite"
        mine = f"process_{jax.process_index()}.npz"
        if len(list(self._folder.glob(f"*_{mine}"))) >= _MOST_SAVED:
            return report
        path = self._folder / f"step_{step}_{mine}"
        flat: dict[str, Any] = dict(traverse_util.flatten_dict(arrays, sep="/"))
        try:
            # Several processes may make it at the same time.
            self._folder.mkdir(exist_ok=True)
            np.savez(path, allow_pickle=False, **flat)
        except OSError as error:
            # The run continues without the file: its update is skipped in any case.
            return f"{report}, and could not be saved: {error}"
        return f"{report}, and is in {path}"


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Lists the arrays with NaN or infinities, and their count, such as `action (3 of 128)`.

    Args:
      arrays: Nested arrays on the host; integers and masks are always finite.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = leaf.size - int(np.count_nonzero(np.isfinite(leaf)))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append(f"{name} ({bad} of {leaf.size})")
    return found
