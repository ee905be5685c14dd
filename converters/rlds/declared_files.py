"""Whether the files that a source declares are there, before the first of them is read."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from converters.sources.source import Source
from pipeline.errors import DataError

_MAX_NAMES = 5
"""Files that an error lists."""
_MAX_RANGES = 3


def check_files(source: Source) -> None:
    """Checks that the files of all episodes that are read are there, before any of them is.

    Raises:
      DataError: Where some or all are missing; with what is there, and how to convert that.
    """
    # One listing per folder, instead of a request for each of up to 99,999 files.
    present = _present({path.parent for shard in source.shards for path in shard.paths})
    is_there = [shard.name in present for shard in source.shards]
    missing = [s.name for s, there in zip(source.shards, is_there, strict=True) if not there]
    if not missing:
        return
    remedy = "Fetch the missing files."
    if any(is_there):
        names = [s.name for s, there in zip(source.shards, is_there, strict=True) if there]
        found = f"{len(names):,} of them: {_listed(names)}; missing: {_listed(missing)}"
        if not source.selection:
            remedy += f" Or convert what is there, with {_ranges(source, is_there)}."
    else:
        # Files of another split or version are named alike.
        others = sorted(name for name in present if re.search(r"-\d{5,}-of-\d{5,}$", name))
        found = f"none of them, but {_listed(others)}" if others else "none of them"
        if others:
            remedy = "dataset_info.json is of another version than these files: fetch both again."
    names = _listed([shard.name for shard in source.shards], 1)
    raise DataError(
        where=f"{source.directory}, split {source.split}",
        expected=f"{len(source.shards):,} files of episodes, as dataset_info.json says: {names}",
        found=found,
        remedy=remedy,
    )


def _listed(names: Sequence[str], num_names: int = _MAX_NAMES) -> str:
    more = len(names) - num_names
    return ", ".join(names[:num_names]) + (f" and {more:,} more" if more > 0 else "")


def _present(folders: Iterable[epath.Path]) -> set[str]:
    """Names of what lies in folders."""
    return {path.name for folder in folders if folder.exists() for path in folder.iterdir()}


def _ranges(source: Source, is_there: Sequence[bool]) -> str:
    """The ranges of episodes whose files are there, as flags."""
    flags = [f"--episodes {first}:{stop}" for first, stop in _runs(source, is_there)]
    more = f" (or {len(flags) - _MAX_RANGES} other ranges)" if len(flags) > _MAX_RANGES else ""
    return " or ".join(flags[:_MAX_RANGES]) + more


def _runs(source: Source, is_there: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yields (first episode, the one behind the last) of files that follow each other."""
    first = 0
    pairs = zip(source.shards, is_there, strict=True)
    # Files that follow each other make one range.
    for there, run in itertools.groupby(pairs, lambda pair: pair[1]):
        stop = first + sum(shard.num_episodes for shard, _ in run)
        if there and stop > first:
            yield first, stop
        first = stop
