"""Hashes of each episode's actions, by which a split decides which episodes are held out.

The manifest stores them, so that a split reads no trajectory: for each shard of `episodes` one
text, with 16 hex digits per episode. At a million episodes it is 16 MB, and 12 ms to read; a list
of numbers is 21 MB and 0.3 s.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from pipeline.data.manifest import NUM_HASH_DIGITS, Manifest, Shard
from pipeline.data.schema import ACTION, EPISODES, Schema

UNKNOWN = 2**64 - 1
"""Stored for an episode whose actions could not be read: beyond every fraction of a split."""


def has_actions(schema: Schema) -> bool:
    """Whether each episode's record has its actions."""
    return any(
        column.name == EPISODES and feature.key == ACTION and feature.kind == "tensor"
        for column, feature in schema.features()
    )


def hash_actions(actions: np.ndarray) -> int:
    """Returns the XXH3-64 of the bytes of an episode's actions.

    Args:
      actions: (t *shape), at rest: little-endian, in C order.
    """
    # `tobytes` has C order, whatever order the memory has.
    return xxhash.xxh3_64_intdigest(actions.tobytes())


def to_texts(hashes: Iterable[int], shards: Sequence[Shard]) -> tuple[str, ...]:
    """Formats the hashes of all episodes as the manifest stores them; one text per shard.

    Args:
      hashes: Hash of each episode, in order; below 2**64.
      shards: The shards of `episodes`.
    """
    digits = np.fromiter(hashes, np.uint64).astype(">u8").tobytes().hex()
    ends = np.cumsum([0, *(shard.records for shard in shards)]) * NUM_HASH_DIGITS
    return tuple(digits[first:end] for first, end in itertools.pairwise(ends))


def stored_hashes(manifest: Manifest) -> np.ndarray | None:
    """Returns the hash of each episode, uint64 (episodes); None if the manifest has none."""
    if not manifest.action_hashes:
        return None
    digits = bytes.fromhex("".join(manifest.action_hashes))
    return np.frombuffer(digits, ">u8").astype(np.uint64)
