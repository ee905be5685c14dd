"""A range of the episodes of a source, such as `--episodes 0:100` names."""

import dataclasses

from converters.sources.source import Source, SourceShard, place_of
from pipeline.errors import UserError


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
