"""The arrays of a policy's checkpoint in one file of safetensors.

Orbax spreads them over 30 files with random names. This file is the same each time it is
written, so that a repository of git or of a hub sees no change where there is none.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

FILE_NAME = "arrays.safetensors"


def write_arrays(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes nested dicts of arrays; each array is named by its path, joined by `/`."""
    # Not `np.ascontiguousarray`, which turns a scalar into a vector.
    flat: dict[str, Any] = flatten_dict(tree, sep="/")
    arrays = {name: np.require(array, requirements="C") for name, array in flat.items()}
    path.write_bytes(safetensors.numpy.save(arrays))


def read_arrays(path: pathlib.Path, *roots: str) -> dict[str, Any]:
    """Returns the arrays at and below paths, such as `state/params`, as nested dicts from the top.

    Raises:
      SafetensorError: The file is corrupt.
      OSError: The file cannot be read.
    """
    below = tuple(f"{root}/" for root in roots)
    # By `pread`: of a file that is mapped into memory, every page read would stay there.
    with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
        # In the order of the file, so that it is read from front to back.
        keys = [key for key in file.offset_keys() if f"{key}/".startswith(below)]
        return unflatten_dict({key: file.get_tensor(key) for key in keys}, sep="/")
