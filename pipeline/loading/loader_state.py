"""The state of a loader in a checkpoint: its position, and the mixture that it counts batches of.

The JSON of a state with one dataset and no excluded records:

    {"position": 1200, "fingerprint": "5f0c1d7e21a40b1c", "changes": [], "mixture": [
    {"name": "libero_spatial", "path": "data/libero_spatial", "steps": 52970, "share": 1.0,
    "data": "8a...", "settings": "3c...", "excluded": []}]}
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence

from pipeline.added_fields import LATER
from pipeline.data.manifest import Manifest
from pipeline.errors import DataError
from pipeline.files import to_json_values
from pipeline.loading.data_config import DataConfig
from pipeline.parts.part import without_sources
from pipeline.terminal import ranges

_WHERE = "loader state of the checkpoint"
# It is part of the fingerprint: a run saved under another version is not resumed.
_VERSION = 2
"""Incremented when the same config and data give different batches; tests pin their content."""
_NOT_CONTENT = (
    "datasets",
    "balance",
    "split",
    "validation_fraction",
    "normalized",
    "statistics",
    "vocabulary",
    "num_threads",
    "prefetch_batches",
    "ram_budget_gb",
    "may_differ",
    "gripper_rules",
)
"""Config fields that change no batch, or that the mixture's checksums already cover."""


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One dataset of a mixture."""

    name: str
    """Name of the dataset."""
    path: str
    """The dataset directory at the time; it may have moved since."""
    steps: int
    """Number of selected steps."""
    share: float
    """Share of the samples that come from this dataset."""
    data: str
    """Checksum of the columns that are read."""
    settings: str
    """Checksum, 16 hex digits, of everything else that decides its samples: selected steps,
    statistics, conventions, token ids, missing observations."""
    excluded: tuple[str, ...]
    """Records that are not read."""
    excluded_episodes: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    """Episodes that `octograin edit` excluded."""
    choice: str = dataclasses.field(default="", metadata=LATER)
    """What the config chooses, in words, for the message about another; `settings` decides."""

    def differences(self, other: "MixturePart") -> list[str]:
        """Describes how the other one's samples differ, apart from excluded records."""
        # Not the path: data may move between a run and its resume.
        fields = ("name", "steps", "share", "data", "settings")
        pairs = {field: (getattr(self, field), getattr(other, field)) for field in fields}
        found = [
            f"{field} {before} then, {after} now"
            for field, (before, after) in pairs.items()
            if before != after
        ]
        if self.excluded_episodes != other.excluded_episodes:
            then, now = (ranges(p.excluded_episodes) or "none" for p in (self, other))
            found = [f"excluded episodes {then} then, {now} now", *found]
        # Other words for the same steps are no difference.
        if found and self.choice != other.choice:
            then, now = (f"({p.choice or 'none noted'})" for p in (self, other))
            found = [f"choice {then} then, {now} now", *found]
        return found


Mixture = tuple[MixturePart, ...]
"""The datasets of a loader, in order."""


@dataclasses.dataclass(frozen=True)
class MixtureChange:
    """A change of mixture during a run."""

    position: int
    """Number of batches used before the change."""
    before: Mixture
    """The mixture before the change."""


@dataclasses.dataclass(frozen=True)
class LoaderState:
    """How far a loader has come, and in which mixture."""

    position: int
    """Number of batches used."""
    fingerprint: str
    """Checksum, 16 hex digits, of the settings that decide what a batch holds."""
    mixture: Mixture
    """The datasets, in order."""
    changes: tuple[MixtureChange, ...] = ()
    """The mixtures before this one, oldest first."""


def continued(kept: LoaderState, now: LoaderState, *, new_mixture: bool) -> LoaderState:
    """Returns the state to resume from: `now` at the kept position, with the kept history.

    Args:
      kept: The state in the checkpoint.
      now: The state of a new loader, at position 0.
      new_mixture: Whether the mixture may differ.

    Raises:
      DataError: The settings differ, or the mixture does and `new_mixture` is False.
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
    # Fewer exclusions would read the corrupt record again, at a random later step.
    if forgotten and not differences and not new_mixture:
        raise DataError(
            where=_WHERE,
            expected="the records that the run excludes",
            found="fewer",
            remedy=f"Exclude them again: {' '.join(forgotten)}",
        )
    # Other data is never used silently: it is refused, or recorded in `changes`.
    if differences and not new_mixture:
        raise DataError(
            where=_WHERE,
            expected="the mixture of this config",
            found="; ".join(differences),
            remedy="Resume with the run's own datasets; to continue with these, which gives other "
            "samples from here on, add --new_mixture.",
        )
    changes = kept.changes
    # A change of exclusions needs no flag, but is recorded too.
    if differences or _excluded(kept.mixture) != _excluded(now.mixture):
        changes = (*changes, MixtureChange(kept.position, kept.mixture))
    # Only the position comes from the checkpoint; what is read comes from this config.
    return dataclasses.replace(now, position=kept.position, changes=changes)


def config_fingerprint(config: DataConfig, batch_size: int) -> str:
    """Returns the checksum of everything but the mixture that determines a batch."""
    return _fingerprint(config, batch_size, _NOT_CONTENT)


def renewed_fingerprint(kept: str, config: DataConfig, batch_size: int) -> str:
    """Returns the checksum of a checkpoint, as `config_fingerprint` computes it.

    In old checkpoints it covers the gripper rules: it is replaced if these are the config's.
    """
    left_out = [name for name in _NOT_CONTENT if name != "gripper_rules"]
    is_old = kept == _fingerprint(config, batch_size, left_out)
    return config_fingerprint(config, batch_size) if is_old else kept


def _fingerprint(config: DataConfig, batch_size: int, left_out: Collection[str]) -> str:
    # Of a changed source a resumed run warns; a comment in it is no other batch.
    content = without_sources(to_json_values(config))
    for name in left_out:
        # What they decide is in the mixture, or does not reach a batch.
        content.pop(name, None)  # a later field may be absent
    content["batch_size"] = batch_size
    content["version"] = _VERSION
    return checksum(content)


def checksum(content: object) -> str:
    """Returns the checksum of JSON values, 16 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def renewed(
    kept: Sequence[MixturePart],
    manifests: Sequence[Manifest],
    columns: Sequence[Collection[str]],
) -> Iterator[MixturePart]:
    """Yields a kept mixture's parts, with outdated but matching checksums replaced.

    Old checkpoints hold `data_digest`, which does not cover conventions and encoders. It may
    be replaced because `settings` covers the conventions, and encoders are compared separately.

    Args:
      kept: The mixture of a checkpoint.
      manifests: Manifests of the datasets now.
      columns: Names of the columns that are read of each.
    """
    for number, part in enumerate(kept):
        # Any other difference stays, and `continued` reports it.
        if number < len(manifests) and part.data == manifests[number].data_digest(columns[number]):
            yield dataclasses.replace(part, data=manifests[number].digest(columns[number]))
        else:
            yield part


def _differences(kept: Mixture, now: Mixture) -> Iterator[str]:
    """Yields what has changed in each dataset, apart from excluded records."""
    if len(kept) != len(now):
        before, after = (", ".join(part.path for part in parts) for parts in (kept, now))
        yield f"{before} then, {after} now"
        return
    for before, after in zip(kept, now, strict=True):
        differences = before.differences(after)
        if differences:
            yield f"{after.path}: {', '.join(differences)}"


def _forgotten(kept: Mixture, now: Mixture) -> Iterator[str]:
    """Yields the flags that restore exclusions which this config lacks."""
    # Other lengths are reported by `_differences`.
    for number, (before, after) in enumerate(zip(kept, now, strict=False)):
        if set(before.excluded) - set(after.excluded):
            excluded = dict.fromkeys((*before.excluded, *after.excluded))
            yield f"--config.data.datasets.{number}.excluded {' '.join(excluded)}"


def _excluded(mixture: Mixture) -> list[set[str]]:
    return [set(part.excluded) for part in mixture]
