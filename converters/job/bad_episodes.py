"""Episodes of a source that cannot be used: noted shard by shard, listed together at the end."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from converters.sources.source import Source, SourceShard, place_of
from pipeline.data.manifest import SkippedEpisode
from pipeline.errors import DataError, UserError

BadEpisodes = Literal["stop", "skip"]
"""What a job does about them: it writes no dataset, or one without them."""

_MAX_LISTED = 20
_MAX_REASON = 300
"""Characters of what is wrong with an episode."""
_SKIP = "Or leave such episodes out: --bad_episodes skip."


@dataclasses.dataclass(frozen=True)
class Checks:
    """What a job looks at in the episodes, and what it does about those that cannot be used."""

    bad_episodes: BadEpisodes = "stop"
    """A shard is the same with either, so a job that stopped can be finished by skipping."""
    check_images: bool = False
    """Whether every image is decoded; else the header alone is read."""


DEFAULT_CHECKS = Checks()


@dataclasses.dataclass(frozen=True)
class BadEpisode:
    """One episode, and the fields of the error that it raised."""

    episode: int
    """Its place in the source's file."""
    where: str
    expected: str
    found: str
    remedy: str

    @classmethod
    def of(cls, episode: int, error: UserError) -> "BadEpisode":
        """Returns what has to be noted of an error."""
        return cls(episode, error.where, error.expected, error.found, error.remedy)

    def skipped(self, shard: SourceShard, source: Source) -> SkippedEpisode:
        """Returns its entry in the manifest, which is the same wherever the source lies."""
        place = self.where
        # The place stands in the entry already, once as file and episode.
        for known in (f"{shard.where}, episode {self.episode}", shard.where, source.directory):
            place = place.removeprefix(str(known))
        place = place.lstrip(",/ ")
        reason = f"expected {self.expected}; found {self.found}"
        reason = f"{place}: {reason}" if place else reason
        if len(reason) > _MAX_REASON:
            reason = f"{reason[:_MAX_REASON]}..."
        return SkippedEpisode(shard.name, self.episode, reason)


def refused(
    source: Source, bad: Sequence[tuple[SourceShard, BadEpisode]], *, can_skip: bool = True
) -> DataError:
    """The error that lists them: of one its own, of more the first of them and their number.

    Args:
      source: They are from.
      bad: At least one, with the file that it lies in.
      can_skip: Whether leaving them out would leave anything.
    """
    _, first = bad[0]
    # The same remedy of many episodes is given once.
    remedies = dict.fromkeys(episode.remedy for _, episode in bad)
    remedy = f"{next(iter(remedies))} {_SKIP}" if can_skip else next(iter(remedies))
    if len(bad) == 1:
        return DataError(
            where=first.where, expected=first.expected, found=first.found, remedy=remedy
        )
    total = sum(shard.num_episodes for shard in source.shards)
    return DataError(
        where=place_of(source),
        expected=f"{total:,} episodes that can be used",
        found=f"{len(bad):,} that cannot: "
        + "; ".join(listed([episode.skipped(shard, source) for shard, episode in bad])),
        remedy=remedy,
    )


def listed(skipped: Sequence[SkippedEpisode]) -> list[str]:
    """A line for each of the first reasons with its first episodes, and one that counts the rest.

    set-train.tfrecord-00000-of-00002, episodes 1, 7: expected ...; found ...
    """
    # Episodes of one file that fail alike share a line.
    places: dict[tuple[str, str], list[str]] = {}
    for episode in skipped:
        places.setdefault((episode.reason, episode.file), []).append(str(episode.episode))
    lines = []
    for (reason, file), numbers in itertools.islice(places.items(), _MAX_LISTED):
        more = f" and {len(numbers) - _MAX_LISTED:,} more" if len(numbers) > _MAX_LISTED else ""
        word = "episode" if len(numbers) == 1 else "episodes"
        lines.append(f"{file}, {word} {', '.join(numbers[:_MAX_LISTED])}{more}: {reason}")
    rest = sum(map(len, itertools.islice(places.values(), _MAX_LISTED, None)))
    return [*lines, f"and {rest:,} more episodes"] if rest else lines
