"""The sizes of images that are declared without one: those of the first record's."""

import dataclasses
from collections.abc import Mapping

from converters.rlds.declared_keys import UNKNOWN
from converters.sources.reading import readable_episodes
from converters.sources.source import Episode, Source, SourceKey
from pipeline.data.images import image_size
from pipeline.errors import UserError


def sized_keys(source: Source) -> Mapping[str, SourceKey]:
    """The keys of a source with a size for every image; the conversion checks that all have it.

    A key none of whose images can be read becomes one of kind `other`.
    """
    # Only these need a read of the first episode.
    unsized = [key for key in source.keys.values() if UNKNOWN in key.shape]
    if not unsized:
        return source.keys
    found: dict[str, SourceKey] = {}
    for where, episode in readable_episodes(source, {key.key for key in unsized}):
        try:
            found = {key.key: _sized(key, episode, where) for key in unsized}
            break
        except UserError:  # the conversion reports an image that cannot be read
            continue
    for key in unsized:
        words = f"Image of {key.dtype} without a size, none of whose records can be read"
        unread = dataclasses.replace(key, kind="other", shape=(), dtype=words, has_images=True)
        found.setdefault(key.key, unread)
    return {**source.keys, **found}


def _sized(key: SourceKey, episode: Episode, where: str) -> SourceKey:
    encoded = episode[key.key][0]
    assert isinstance(encoded, bytes | memoryview)
    size = image_size(encoded, f"{where}, {key.key}")
    return dataclasses.replace(key, shape=(*size, key.shape[-1]))
