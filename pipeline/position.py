"""Where a loader stands, as a checkpoint keeps it: a position, and what it counts in.

As JSON, with one dataset and nothing left out:

    {"position": 1200, "fingerprint": "5f0c1d7e21a40b1c", "changes": [], "mixture": [
    {"name": "libero_spatial", "path": "data/libero_spatial", "steps": 52970, "share": 1.0,
    "data": "8a...", "settings": "3c...", "excluded": []}]}
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
    path: str
    """Where it lay; it may have moved since."""
    steps: int
    """Selected steps."""
    share: float
    """Of the samples."""
    data: str
    """Digest of the columns that are read."""
    settings: str
    """16 hex digits over all else that decides what its samples hold: which steps are selected,
    statistics, conventions, token ids, missing observations."""
    excluded: tuple[str, ...]
    """Records that are not read."""

    def differences(self, other: "MixturePart") -> list[str]:
        """In words, what makes the samples of another one differ, but for excluded records."""
        fields = ("name", "steps", "share", "data", "settings")
        pairs = {field: (getattr(self, field), getattr(other, field)) for field in fields}
        return [
            f"{field} {before} then, {after} now"
            for field, (before, after) in pairs.items()
            if before != after
        ]


Mixture = tuple[MixturePart, ...]
"""The datasets of a loader, in order."""


@dataclasses.dataclass(frozen=True)
class MixtureChange:
    """A mixture that a run has left."""

    position: int
    """Batches that were used when it changed."""
    before: Mixture
    """What it was until then."""


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """A loader's place in its series of batches."""

    position: int
    """Batches that were used."""
    fingerprint: str
    """16 hex digits over the settings that decide what a batch holds."""
    mixture: Mixture
    """The datasets, in order."""
    changes: tuple[MixtureChange, ...] = ()
    """The mixtures before this one, oldest first."""


def continued(kept: LoaderState, now: LoaderState, *, new_mixture: bool) -> LoaderState:
    """The state that a loader continues from: `now` at the kept position, with its history.

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
    forgotten = list(_forgotten(kept.mixture, now.mixture))
    if forgotten and not differences and not new_mixture:
        raise DataError(
            where=_WHERE,
            expected="the records that the run excludes",
            found="fewer",
            remedy=f"Exclude them again: {' '.join(forgotten)}",
        )
    if differences and not new_mixture:
        raise DataError(
            where=_WHERE,
            expected="the mixture of this config",
            found="; ".join(differences),
            remedy="Resume with the run's own datasets; to continue with these, which gives other "
            "samples from here on, add --new_mixture.",
        )
    changes = kept.changes
    if differences or _excluded(kept.mixture) != _excluded(now.mixture):
        changes = (*changes, MixtureChange(kept.position, kept.mixture))
    return dataclasses.replace(now, position=kept.position, changes=changes)


def _differences(kept: Mixture, now: Mixture) -> Iterator[str]:
    """What is no longer so, but for excluded records."""
    if len(kept) != len(now):
        before, after = (", ".join(part.path for part in parts) for parts in (kept, now))
        yield f"{before} then, {after} now"
        return
    for before, after in zip(kept, now, strict=True):
        differences = before.differences(after)
        if differences:
            yield f"{after.path}: {', '.join(differences)}"


def _forgotten(kept: Mixture, now: Mixture) -> Iterator[str]:
    """The flags that exclude again what is no longer excluded."""
    for number, (before, after) in enumerate(zip(kept, now, strict=False)):
        if set(before.excluded) - set(after.excluded):
            excluded = dict.fromkeys((*before.excluded, *after.excluded))
            yield f"--config.data.datasets.{number}.excluded {' '.join(excluded)}"


def _excluded(mixture: Mixture) -> list[set[str]]:
    return [set(part.excluded) for part in mixture]
