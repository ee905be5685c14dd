"""Finds the arrays of a batch with values that are not finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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
