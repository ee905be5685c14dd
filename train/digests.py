"""Digests of what a checkpoint holds, by which bytes that changed on the disk are seen.

They are of whole arrays, so they are the same however these are cut over devices. On 2 CPU cores
XXH3 takes 60 ms for the 917 arrays of an octo-small's state, 727 MB; a checksum computed by jax
took 230 ms, and 5.6 s to compile for their 79 shapes.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

MISSING = "none"


@dataclasses.dataclass(frozen=True)
class Digests:
    """Of everything in one checkpoint."""

    arrays: Mapping[str, str]
    """As `digest_arrays` returns it, of all items with arrays, each below its name."""
    values: Mapping[str, str]
    """By item: XXH3 of 128 bits over its JSON, as 32 hex digits."""

    @classmethod
    def of(cls, trees: Mapping[str, Any], values: Mapping[str, Any]) -> "Digests":
        """Of trees of arrays and of JSON values, by item; every process of a run must ask."""
        return cls(digest_arrays(trees), {name: digest_json(v) for name, v in values.items()})


def digest_arrays(tree: Any) -> dict[str, str]:
    """By path joined by `/`: dtype, shape and XXH3 of 128 bits over the bytes of the whole array.

    Such as `{"params/head/kernel": "float32[3,2] 5f0c1d7e21a40b1c5f0c1d7e21a40b1c"}`. An array that
    is cut over processes is gathered by all of them, one at a time.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): _digest(_whole(leaf))
        for path, leaf in leaves
    }


def digest_json(values: Any) -> str:
    """32 hex digits over JSON values, in whatever order their keys are."""
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def changes(saved: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """In words, which arrays are not as they were saved; nothing where all are.

    Args:
      saved: Digests of all that should be there.
      found: Digests of what was read.
    """
    return [
        f"{path} ({saved.get(path, MISSING)} then, {found.get(path, MISSING)} now)"
        for path in sorted(saved.keys() | found.keys())
        if saved.get(path) != found.get(path)
    ]


def _whole(leaf: Any) -> np.ndarray:
    """All of an array on the host."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _digest(array: np.ndarray) -> str:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # bfloat16 is no plain buffer
    shape = ",".join(map(str, array.shape))
    return f"{array.dtype}[{shape}] {xxhash.xxh3_128_hexdigest(flat.data)}"
