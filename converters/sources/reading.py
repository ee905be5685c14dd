"""The episodes of a source, for who needs no more than their values."""

from collections.abc import Collection, Iterator

from converters.sources.source import Episode, Source, SourceShard
from pipeline.errors import UserError


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
