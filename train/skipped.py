"""The batch of an update that was skipped, for inspection."""

import contextlib
import itertools
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from pipeline.loader import Loader
from train.finite import non_finite

DIRECTORY = "skipped"
"""Folder of a run directory."""
_MOST_SAVED = 4
"""Batches of a process."""


def keep_batch(loader: Loader, step: int, run_directory: pathlib.Path) -> str:
    """Saves this process's rows of a batch, and says what is known of it.

    Args:
      loader: Of the run; it makes the batch again, which is a function of the step alone.
      step: Steps taken with it.
      run_directory: Gets `skipped/`, with the first few batches.

    Returns:
      Where it is, and its arrays that are not finite: text that follows on another.
    """
    with contextlib.closing(loader.batches(step - 1)) as batches:
        arrays = next(itertools.islice(batches, 1)).arrays
    found = non_finite(arrays)
    report = f"; not finite in the batch: {', '.join(found)}" if found else "; the batch is finite"
    folder = run_directory / DIRECTORY
    mine = f"process_{jax.process_index()}.npz"
    if len(list(folder.glob(f"*_{mine}"))) >= _MOST_SAVED:
        return report
    path = folder / f"step_{step}_{mine}"
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(arrays, sep="/"))
    try:
        folder.mkdir(exist_ok=True)
        np.savez(path, allow_pickle=False, **flat)
    except OSError as error:
        return f"{report}, and could not be saved: {error}"
    return f"{report}, and is in {path}"
