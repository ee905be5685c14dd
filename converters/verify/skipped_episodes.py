"""Whether the episodes that a dataset lists as skipped are in its source, and cannot be used."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import numpy as np

from converters.sources.episode_boundaries import check_boundaries
from converters.sources.source import Episode
from converters.verify.findings import Findings
from pipeline.data.depth import MM_PER_M, read_millimetres
from pipeline.data.images import decode_image
from pipeline.data.manifest import FILE_NAME, Manifest
from pipeline.data.schema import Blob, Column, Feature, to_rest
from pipeline.errors import UserError

_HALF_MM = 0.5
_MOST_MM = 65535
"""More does not fit 16 bits."""


@runtime_checkable
class SourceEpisode(Protocol):
    """An episode of the source, as `converters.verify.expected_records` reads it."""

    @property
    def where(self) -> str:
        """File and episode."""
        ...

    @property
    def episode(self) -> Episode:
        """Values of all its steps, by source key."""
        ...

    @property
    def steps(self) -> np.ndarray:
        """int64 (t): those that are looked at."""
        ...

    def tensors(self, feature: Feature) -> np.ndarray:
        """(t, *shape) of a tensor feature."""
        ...

    def depth(self, feature: Feature, step: int) -> np.ndarray | Blob:
        """An encoded image, or (h, w) or (h, w, 1)."""
        ...

    def blob(self, key: str, step: int) -> Blob:
        """The encoded image or text of a key at a step."""
        ...


class SkippedEpisodes:
    """Those that `dataset.json` lists, to be ticked off as the source is read."""

    def __init__(self, manifest: Manifest, findings: Findings) -> None:
        self._manifest = manifest
        self._findings = findings
        self._listed = {(s.file, s.episode) for s in manifest.skipped_episodes}

    def take(self, file: str, episode: int) -> bool:
        """Whether an episode of the source is listed; it is ticked off."""
        place = file, episode
        is_listed = place in self._listed
        self._listed.discard(place)
        return is_listed

    def check(self, expected: SourceEpisode, compared: Collection[str], task: str | None) -> None:
        """Finds an episode that was skipped though nothing is wrong with it.

        Args:
          expected: The episode with all its steps, read without an error.
          compared: Feature keys whose values the source declares as the dataset does.
          task: The key of the instruction; None where it has none.
        """
        try:
            check_boundaries(expected.episode, expected.where)
            for column, feature in self._manifest.schema.features():
                if feature.key in compared:
                    _check_values(expected, column, feature)
            if task is not None:
                for t in range(len(expected.steps)):
                    bytes(expected.blob(task, t)).decode()
        except (UserError, UnicodeDecodeError):
            # There is something wrong with it, as the manifest says.
            return
        listed = f"an episode that cannot be used, as {FILE_NAME} lists it as skipped"
        self._findings.add(expected.where, listed, "one without a fault")

    def finish(self, where: str) -> None:
        """Finds those that the source does not have, once all of it was read."""
        if self._listed:
            found = ", ".join(f"{file}, episode {number}" for file, number in sorted(self._listed))
            self._findings.add(f"{where}, skipped_episodes", "episodes of the source", found)


def _check_depth(value: np.ndarray | Blob, feature: Feature, where: str) -> None:
    if not isinstance(value, np.ndarray):
        read_millimetres(value, feature.shape, where)
        return
    millimetres = value.astype(np.float64) * (MM_PER_M if feature.source_unit == "m" else 1)
    if not ((millimetres >= -_HALF_MM) & (millimetres < _MOST_MM + _HALF_MM)).all():
        raise UserError(where=where, expected="depth that fits", found="others", remedy="")


def _check_values(expected: SourceEpisode, column: Column, feature: Feature) -> None:
    """Raises where a feature has a value that cannot be stored."""
    place = f"{expected.where}, {feature.source}"
    steps = range(len(expected.steps))
    if feature.kind == "text":
        bytes(expected.blob(feature.source, 0)).decode()
    elif feature.kind == "depth":
        for t in steps:
            _check_depth(expected.depth(feature, t), feature, f"{place}, step {t}")
    elif feature.kind == "image":
        # Decoded whole: that its header is fine was no reason to skip it.
        pixels = np.empty(feature.shape, np.uint8)
        for t in steps:
            decode_image(expected.blob(feature.source, t), pixels, f"{place}, step {t}")
    else:
        values = to_rest(expected.tensors(feature), feature, place)
        is_measured = column.per == "episode" and feature.dtype == "float32"
        if is_measured and not np.isfinite(values).all():
            raise UserError(where=place, expected="finite values", found="others", remedy="")
