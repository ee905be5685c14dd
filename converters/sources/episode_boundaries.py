"""Whether an episode's own flags for its first and last step agree with the record it lies in."""

import numpy as np

from converters.sources.source import IS_FIRST, IS_LAST, Episode
from pipeline.errors import SchemaError


def check_boundaries(episode: Episode, where: str) -> None:
    """Checks that a record holds one whole episode, by `is_first` and `is_last` where it has them.

    A first step without `is_first`, or a boundary inside the record, shows a record that holds a
    single step, a part of an episode, or several. An episode that was cut off lacks `is_last`
    alone; that counts only where no `is_first` is read.

    Args:
      episode: By source key, as it was read; without the flags where the mapping ignores them.
      where: File and episode, for errors.

    Raises:
      SchemaError: Where it does not.
    """
    first, last = _flags(episode, IS_FIRST), _flags(episode, IS_LAST)
    # A record that begins in the middle holds single steps, or parts of episodes.
    if first is not None and not first[0]:
        found = f"is_first false at step 0 of {len(first)}"
    elif first is not None and first[1:].any():
        # A second beginning: several episodes in one record.
        found = f"is_first at step {1 + np.flatnonzero(first[1:])[0]} of {len(first)}"
    elif last is not None and last[:-1].any():
        found = f"is_last at step {np.flatnonzero(last)[0]} of {len(last)}"
    elif first is None and last is not None and not last[-1]:
        # An episode that was cut off lacks `is_last` alone, so this counts only without `is_first`.
        found = f"is_last false at the last of {len(last)} steps"
    else:
        return
    raise SchemaError(
        where=where,
        expected="one whole episode in a record: is_first at its first step, is_last at its last",
        found=found,
        remedy="Write one record per episode at the source (these may be single steps, or parts "
        f"of episodes); where the flags mean nothing, ignore {IS_FIRST} and {IS_LAST} in the "
        "mapping.",
    )


def _flags(episode: Episode, key: str) -> np.ndarray | None:
    """Bool (t) of a key that has one value per step; None where it was not read as such."""
    values = episode.get(key)
    # Compared with 0, because the flags may be bools or floats.
    return values != 0 if isinstance(values, np.ndarray) and values.ndim == 1 else None
