"""Reads episodes of a source: a range of them, their values, and if records hold whole ones."""

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from converters.sources.source import IS_FIRST, IS_LAST, Episode, Source, SourceShard, place_of
from pipeline.errors import SchemaError, UserError


def select_shards(source: Source, start: int, stop: int) -> tuple[tuple[SourceShard, ...], str]:
    """The shards of a range of episodes, and the range in words.

    Args:
      source: All of its episodes are read.
      start: The first episode, counted over all shards.
      stop: The first that is not read any more.

    Returns:
      Shards that hold any of them, and `A:B of N`; all shards and an empty text for all episodes.

    Raises:
      UserError: Where there are no such episodes.
    """
    if source.selection:
        raise ValueError(f"these are already the episodes {source.selection}")
    total = sum(shard.num_episodes for shard in source.shards)
    if not 0 <= start < stop <= total:
        raise UserError(
            where=place_of(source),
            expected=f"a range A:B of episodes with 0 <= A < B <= {total}",
            found=f"{start}:{stop}",
            remedy="Name another one with --episodes.",
        )
    if (start, stop) == (0, total):
        return tuple(source.shards), ""
    shards = []
    first = 0
    for shard in source.shards:
        # The part of the selection that lies in this shard.
        inside = range(max(start - first, 0), min(stop - first, shard.num_records))
        if inside:
            # None, so that the end of the shard is checked as well.
            stop_here = None if inside.stop == shard.num_records else inside.stop
            shards.append(dataclasses.replace(shard, start=inside.start, stop=stop_here))
        first += shard.num_records
    return tuple(shards), f"{start}:{stop} of {total}"


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


def read_episodes(
    source: Source, shard: SourceShard, wanted: Collection[str] | None = None
) -> Iterator[tuple[str, Episode]]:
    """Yields (place for errors, values by source key) of the episodes of a shard.

    Args:
      source: The source.
      shard: One of its shards.
      wanted: Source keys to read; None: all except those of kind `other`.

    Raises:
      DataError: A file or an episode that cannot be read.
      SchemaError: A value that is not what the source declares.
    """
    for episode in source.episodes(shard, wanted):
        if isinstance(episode.values, UserError):
            raise episode.values
        yield episode.where, episode.values
        # Otherwise two episodes are in memory at once.
        del episode


def readable_episodes(source: Source, wanted: Collection[str]) -> Iterator[tuple[str, Episode]]:
    """Yields (place, values) of every episode that can be read; the conversion reports the others.

    Args:
      source: The source.
      wanted: Source keys to read.
    """
    for shard in source.shards:
        try:
            for episode in source.episodes(shard, wanted):
                if not isinstance(episode.values, UserError):
                    yield episode.where, episode.values
        except UserError:  # a file that is missing or corrupt: the conversion reports it
            continue
