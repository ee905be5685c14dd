"""Reads the initial states of a task without torch, which wrote them.

The file is a zip with one pickle in it, of one numpy array. A pickle can name any function to be
called, so this one may name no more than what an array is rebuilt with.
"""

import codecs
import io
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np

from pipeline.errors import DataError

# NumPy's own function, whatever its module is called in this release.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
_PICKLE = "data.pkl"
_STATES_AXES = 2


def read_init_states(path: pathlib.Path) -> np.ndarray:
    """float64 (trials, n): one flattened simulator state per trial.

    Raises:
      DataError: A file that is missing, corrupt, holds anything but such an array, or whose pickle
        names another function.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name for name in file.namelist() if name.endswith(f"/{_PICKLE}")]
            if len(names) != 1:
                raise _unreadable(path, f"{len(names)} files {_PICKLE} in it")
            states = _Unpickler(io.BytesIO(file.read(names[0]))).load()
    except DataError:
        # Errors from above, with their own message.
        raise
    except Exception as error:  # what a corrupt pickle raises can be anything
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(states, np.ndarray) or states.dtype != np.float64:
        raise _unreadable(path, f"{getattr(states, 'dtype', type(states).__name__)}")
    if states.ndim != _STATES_AXES or not np.isfinite(states).all():
        raise _unreadable(path, f"float64{list(states.shape)}, finite or not")
    return states


class _Unpickler(pickle.Unpickler):
    """Rebuilds arrays and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name."""
        # Everything else could run code of the file's author.
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return _ALLOWED[module, name]


def _unreadable(path: pathlib.Path, found: str) -> DataError:
    return DataError(
        where=str(path),
        expected="initial states: a zip with a pickle of one array, float64[trials, n] and finite",
        found=found,
        remedy="Install the simulator again: make libero",
    )
