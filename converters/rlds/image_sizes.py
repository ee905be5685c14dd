"""The sizes of images that are declared without one: those of the first record's."""

import dataclasses
from collections.abc import Iterator, Sequence

from converters.rlds.example_parsing import Episode, parse_episode
from converters.rlds.rlds_source import UNKNOWN, RldsSource, SourceKey
from pipeline.data.images import image_size
from pipeline.errors import UserError


def with_image_sizes(source: RldsSource) -> RldsSource:
    """The same source with a size for every image; the conversion checks that all have it.

    A key none of whose images can be read becomes one of kind `other`.
    """
    # Only these need a read of the first episode.
    unsized = [key for key in source.keys.values() if UNKNOWN in key.shape]
    if not unsized:
        return source
    found: dict[str, SourceKey] = {}
    for where, episode in readable_episodes(source, unsized):
        try:
            found = {key.key: _sized(key, episode, where) for key in unsized}
            break
        except UserError:  # the conversion reports an image that cannot be read
            continue
    for key in unsized:
        words = f"Image of {key.dtype} without a size, none of whose records can be read"
        unread = dataclasses.replace(key, kind="other", shape=(), dtype=words, has_images=True)
        found.setdefault(key.key, unread)
    return dataclasses.replace(source, keys={**source.keys, **found})


def readable_episodes(
    source: RldsSource, keys: Sequence[SourceKey]
) -> Iterator[tuple[str, Episode]]:
    """The (place, episode) of every record that can be read, with the values of some keys."""
    wanted = {key.key for key in keys}
    for shard in source.shards:
        try:
            for where, record in source.records(shard):
                try:
                    yield where, parse_episode(record, source.keys, where, wanted)
                except UserError:  # the conversion reports it
                    continue
        except UserError:  # a file that is missing or corrupt: the conversion reports it
            continue


def _sized(key: SourceKey, episode: Episode, where: str) -> SourceKey:
    encoded = episode[key.key][0]
    assert isinstance(encoded, bytes | memoryview)
    size = image_size(encoded, f"{where}, {key.key}")
    return dataclasses.replace(key, shape=(*size, key.shape[-1]))
