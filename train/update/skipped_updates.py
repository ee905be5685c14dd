"""Saves the batch of a skipped update, and lists which of its arrays are not finite."""

import contextlib
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pipeline.loading.loader import Loader


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Lists the arrays with NaN or infinities, and their count, such as `action (3 of 128)`.

    Args:
      arrays: Nested arrays on the host; integers and masks are always finite.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        # Integers and bools are always finite.
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        bad = leaf.size - int(np.count_nonzero(np.isfinite(leaf)))
        if bad:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            found.append(f"{name} ({bad} of {leaf.size})")
    return found


DIRECTORY = "skipped"
"""Name of the folder in the run directory."""
_MOST_SAVED = 4
"""Largest number of batches that a process saves."""


def keep_batch(loader: Loader, step: int, run_directory: pathlib.Path) -> str:
    """Saves this process's rows of a batch, and returns a description of it.

    Args:
      loader: The run's loader; it makes the batch again, which depends only on the training step.
      step: Training steps taken, including the one that used the batch.
      run_directory: The run directory; the first few batches are saved in `skipped/` in it.

    Returns:
      Text to append to a message: where the batch is, and which of its arrays are not finite.
    """
    # Read again: the batch that was used is not kept until its metrics are read.
    with contextlib.closing(loader.batches(step - 1)) as batches:
        arrays = next(itertools.islice(batches, 1)).arrays
    found = non_finite(arrays)
    report = f"; not finite in the batch: {', '.join(found)}" if found else "; the batch is finite"
    folder = run_directory / DIRECTORY
    mine = f"process_{jax.process_index()}.npz"
    # At most 4 of each process, as a batch may have hundreds of MB.
    if len(list(folder.glob(f"*_{mine}"))) >= _MOST_SAVED:
        return report
    path = folder / f"step_{step}_{mine}"
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(arrays, sep="/"))
    try:
        # Several processes may make it at the same time.
        folder.mkdir(exist_ok=True)
        np.savez(path, allow_pickle=False, **flat)
    except OSError as error:
        # The run continues without the file: its update is skipped in any case.
        return f"{report}, and could not be saved: {error}"
    return f"{report}, and is in {path}"
