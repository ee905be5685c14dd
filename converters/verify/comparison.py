"""Comparing what a dataset holds with what it has to hold, value by value."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from converters.verify.expected_records import Expected
from converters.verify.findings import Findings
from pipeline.data import statistics as stats
from pipeline.data.depth import MM_PER_M, read_millimetres
from pipeline.data.manifest import Manifest
from pipeline.data.record import Values
from pipeline.data.schema import EPISODES, Blob, Feature
from pipeline.errors import DataError

_SHOWN_BYTES = 60
_HALF_MM = 0.5


def differences(stored: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Bool (*shape): where a stored value is not the source's under the dtype law.

    Integers must be the same numbers, floats the same bits after the rounding of float64 to
    float32; a value that this rounding makes infinite differs.

    Args:
      stored: (*shape) of a dtype at rest.
      source: (*shape) of the source's dtype.
    """
    # Numbers, because integers change their size and never their value.
    if source.dtype.kind in "iub":
        return stored != source
    with np.errstate(over="ignore"):
        expected = source.astype(stored.dtype, copy=False)
    # Bits, so that NaN equals NaN, and -0.0 is not 0.0.
    bits = f"u{stored.dtype.itemsize}"
    differ = stored.view(bits) != expected.view(bits)
    if source.dtype == np.float64:
        # Finite at the source, infinite at rest.
        differ |= np.isfinite(source) & ~np.isfinite(expected)
    return differ


def compare_record(
    values: Values,
    features: Sequence[Feature],
    expected: Expected,
    step: int | None,
    where: str,
    findings: Findings,
) -> None:
    """Compares the values of one record with the source's; one finding a feature at most.

    Args:
      values: Values of the record, by feature key.
      features: Those that are compared.
      expected: The episode of the source.
      step: Step in the episode for a record of a step column; None for a whole episode.
      where: File and record.
      findings: Take what differs.
    """
    for feature in features:
        place = f"{where}, {feature.key}"
        value = values[feature.key]
        if feature.kind == "depth":
            source = expected.depth(feature, step or 0)
            if difference := _depth_difference(bytes(value), feature, source, place):
                at = f"{expected.where}, step {step}"
                findings.add(place, f"{difference[0]}, as {at}", difference[1])
        elif isinstance(value, np.ndarray):
            if step is None:
                _compare(value, expected.tensors(feature), place, expected.where, findings)
            else:
                # [newaxis]: one step, in the form of many.
                source = expected.tensor(feature, step)[np.newaxis]
                at = f"{expected.where}, step {step}"
                _compare(value[np.newaxis], source, place, at, findings)
        elif bytes(value) != (blob := bytes(expected.blob(feature.source, step or 0))):
            # Blobs are compared whole: conversion changes no byte of them.
            at = expected.where if step is None else f"{expected.where}, step {step}"
            findings.add(place, f"{_shortened(blob)}, as {at}", _shortened(bytes(value)))


def _depth_difference(
    stored: bytes, feature: Feature, source: np.ndarray | Blob, place: str
) -> tuple[str, str] | None:
    """Returns (expected, found) where a stored depth image is not the source's, else None.

    An encoded image is compared whole: conversion changes no byte of it. Numbers may differ by the
    rounding to the nearest millimetre.
    """
    if not isinstance(source, np.ndarray):
        blob = bytes(source)
        return None if stored == blob else (_shortened(blob), _shortened(stored))
    found = read_millimetres(stored, feature.shape, place)[..., 0]
    millimetres = source.reshape(found.shape).astype(np.float64)
    millimetres *= MM_PER_M if feature.source_unit == "m" else 1
    # A difference that is NaN is none that is small.
    differ = ~(np.abs(found - millimetres) <= _HALF_MM)
    if not differ.any():
        return None
    y, x = (int(axis[0]) for axis in np.nonzero(differ))
    more = f"{int(differ.sum()) - 1} more values that differ"
    return f"{millimetres[y, x]:g} mm at [{y}, {x}]", f"{found[y, x]} mm, and {more}"


def _compare(
    stored: np.ndarray, source: np.ndarray, place: str, origin: str, findings: Findings
) -> None:
    """Compares (t, *shape) with (t, *shape); t is 1 for a record of a single step."""
    if stored.shape != source.shape:
        expected = f"{list(source.shape)}, as {origin}"
        findings.add(place, expected, f"{stored.dtype}{list(stored.shape)}")
        return
    differ = differences(stored, source)
    if not differ.any():
        return
    first = tuple(int(axis[0]) for axis in np.nonzero(differ))
    findings.add(
        f"{place}, step {first[0]}" if len(stored) > 1 else place,
        f"{source[first]} at {list(first[1:])}, as {origin}",
        f"{stored[first]}, and {int(differ.sum()) - 1} more values that differ",
    )


def _shortened(blob: bytes) -> str:
    return f"{len(blob)} bytes {blob[:12]!r}" if len(blob) > _SHOWN_BYTES else repr(blob)


class StatisticsCheck:
    """Computes the statistics of a dataset again, episode by episode."""

    def __init__(self, manifest: Manifest) -> None:
        self._checksum = manifest.statistics_checksum
        episodes = next(c for c in manifest.schema.columns if c.name == EPISODES)
        self.features = tuple(f for f in episodes.features if f.dtype == "float32")
        """Those that have statistics."""
        self._accumulators = {feature.key: stats.Accumulator() for feature in self.features}
        self._unknown: set[str] = set()

    def add(self, values: Values | None) -> None:
        """Takes the next episode; a feature that it lacks is no longer compared.

        Args:
          values: By feature key, float32 (t, *shape); None for an episode that is not readable.
        """
        for key, accumulator in self._accumulators.items():
            # A record that is not readable makes the statistics of all its features unknown.
            if values is None or key not in values:
                self._unknown.add(key)
            elif key not in self._unknown:
                accumulator.add(np.asarray(values[key]))

    def compare(self, path: epath.Path, findings: Findings) -> None:
        """Compares a `statistics.json`, exactly; one finding a number of a feature."""
        stored = None
        try:
            # Read twice: values with a wrong checksum are still worth comparing.
            stored = stats.load(path)
            stats.load(path, self._checksum)
        except DataError as error:
            findings.add_error(error)
        if stored is None:
            return
        if stored.keys() != self._accumulators.keys():
            findings.add(str(path), f"{sorted(self._accumulators)}", f"{sorted(stored)}")
        for key, accumulator in self._accumulators.items():
            if key in self._unknown or key not in stored:
                continue
            computed = accumulator.finish().to_json()
            for name, found in stored[key].to_json().items():
                # Exactly: the same code in the same order gives the same digits.
                if found != computed[name]:
                    findings.add(f"{path}, {key}, {name}", str(computed[name]), str(found))
