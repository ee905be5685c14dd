"""Where a loader stands, as a checkpoint keeps it: a position, and what it counts in.

As JSON, with one dataset and nothing left out:

    {"position": 1200, "fingerprint": "5f0c1d7e21a40b1c", "changes": [], "mixture": [
    {"name": "libero_spatial", "steps": 52970, "share": 1.0, "digest": "8a...", "excluded": []}]}
"""

import dataclasses
from collections.abc import Iterator

from pipeline.errors import DataError

_WHERE = "loader state of the checkpoint"


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture."""

    name: str
    """Of the dataset."""
    steps: int
    """Selected steps."""
    share: float
    """Of the samples."""
    digest: str
    """16 hex digits over all else that decides what its samples hold."""
    excluded: tuple[str, ...]
    """Records that are not read."""

    def is_same(self, other: "MixturePart") -> bool:
        """Whether both give the same samples, but for excluded records."""
        return dataclasses.replace(self, excluded=()) == dataclasses.replace(other, excluded=())


@dataclasses.dataclass(frozen=True)
class MixtureChange:
    """A mixture that a run has left."""

    position: int
    """Batches that were used when it changed."""
    before: tuple[MixturePart, ...]
    """What it was until then."""


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """A loader's place in its series of batches."""

    position: int
    """Batches that were used."""
    fingerprint: str
    """16 hex digits over the settings that decide what a batch holds."""
    mixture: tuple[MixturePart, ...]
    """The datasets, in order."""
    changes: tuple[MixtureChange, ...] = ()
    """The mixtures before this one, oldest first."""


def continued(kept: LoaderState, now: LoaderState, *, new_mixture: bool) -> LoaderState:
    """The state that a loader goes on from: `now` at the kept position, with its history.

    Args:
      kept: Of the checkpoint.
      now: Of a loader that has not begun.
      new_mixture: Whether the mixture may differ.

    Raises:
      DataError: Where settings differ, or the mixture does without leave.
    """
    if kept.fingerprint != now.fingerprint:
        raise DataError(
            where=_WHERE,
            expected=f"fingerprint {now.fingerprint}, of this config",
            found=kept.fingerprint,
            remedy="Resume with the run's own config, or start a new run.",
        )
    differences = list(_differences(kept.mixture, now.mixture))
    if differences and not new_mixture:
        raise DataError(
            where=_WHERE,
            expected="the mixture of this config",
            found="; ".join(differences),
            remedy="Resume with the run's own datasets; to go on with these, which gives other "
            "samples from here on, add --new_mixture.",
        )
    changes = kept.changes
    if kept.mixture != now.mixture:
        changes = (*changes, MixtureChange(kept.position, kept.mixture))
    return dataclasses.replace(now, position=kept.position, changes=changes)


def _differences(kept: tuple[MixturePart, ...], now: tuple[MixturePart, ...]) -> Iterator[str]:
    """What is no longer so; excluding further records is no difference."""
    if [part.name for part in kept] != [part.name for part in now]:
        before, after = (", ".join(part.name for part in parts) for parts in (kept, now))
        yield f"{before} then, {after} now"
        return
    for before, after in zip(kept, now, strict=True):
        if not before.is_same(after):
            told = (f"{p.steps} steps, share {p.share}, digest {p.digest}" for p in (before, after))
            yield f"{before.name}: " + " then, ".join(told) + " now"
        restored = sorted(set(before.excluded) - set(after.excluded))
        if restored:
            yield f"{before.name}: excluded {', '.join(restored)} then, not now"
