"""What two programs of one computation may differ by: the rounding of float32 sums."""

from typing import Any

import jax
import numpy as np

EPSILON = float(np.finfo(np.float32).eps)
TERMS = 256
"""More than the longest sum of the tests' models has."""


def assert_equal_but_for_rounding(found: Any, expected: Any, terms: int = TERMS) -> None:
    """Asserts that two trees of arrays are those of one computation, compiled in two ways.

    A compiler adds up in the order that suits the processor, the number of its threads and the
    shapes. In another order a sum of n terms differs by at most n times float32's epsilon, times
    the size of what is added: here, of an array's largest value. So the bound grows with the
    values, as one in absolute numbers does not, and is still far below what a mistake changes.

    Args:
      found: Arrays, or a tree of them.
      expected: Expected arrays with the same structure and shapes.
      terms: Number of terms in the longest sum of the computation.
    """
    named = jax.tree_util.tree_leaves_with_path(expected)
    for (path, wanted), leaf in zip(named, jax.tree.leaves(found), strict=True):
        of_array = np.abs(np.asarray(wanted, np.float64)).max(initial=0.0)
        np.testing.assert_allclose(
            np.asarray(leaf, np.float64),
            np.asarray(wanted, np.float64),
            atol=terms * EPSILON * of_array,
            rtol=0,
            err_msg=jax.tree_util.keystr(path),
        )
