"""A source whose episodes have computed values, and the steps and episodes that a mapping keeps.

A mapping that computes becomes a plain one over such a source, so that everything after it sees
keys of a source as always.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from converters.mapping.computed_features import COMPUTED, ComputedFeature
from converters.mapping.episode_selection import Ranges, StepSelection, parse_ranges
from converters.mapping.instruction_from import InstructionFrom
from converters.mapping.mapped_features import FeatureMapping
from converters.mapping.standardize import SourceMapping
from converters.operations.value_type import ValueType
from converters.sources.reading import check_boundaries
from converters.sources.source import (
    IS_FIRST,
    IS_LAST,
    IS_TERMINAL,
    STEPS,
    Episode,
    Source,
    SourceEpisode,
    SourceKey,
    SourceShard,
    WrappedSource,
)
from pipeline.data.schema import EPISODES, Blob
from pipeline.errors import DataError, SchemaError, UserError, nearest_name
from pipeline.files import json_checksum, parse_json, read_text

_TASK = f"{COMPUTED}language_instruction"
_FIX_MAPPING = "Correct the mapping; docs/reference/mapping.md lists what operations take."


def compute_source(source: Source, mapping: SourceMapping) -> tuple[Source, SourceMapping]:
    """A source that holds what a mapping computes, and the plain mapping of it.

    Both are returned as they are where the mapping computes and selects nothing.

    Raises:
      SchemaError: An operation cannot take what its key holds; all such features at once. Keys
        that the source lacks are reported with those that are not mapped, by `mapping.schema`.
      DataError: The file of ranges cannot be read.
    """
    if not mapping.is_computed:
        return source, mapping
    kept = [f for f in mapping.features if not _is_left_out(f, source)]
    computed = [
        ComputedFeature(feature)
        for feature in kept
        if feature.is_computed and _has_all(source, feature.sources)
    ]
    _check(source, mapping, computed)
    names = {feature.mapping.key: feature for feature in computed}
    plain = [_plain(feature, names, source) for feature in kept]
    text = mapping.instruction_from
    has_text = text is not None and bool(_present(text, source))
    columns = {EPISODES, *(feature.column for feature in kept)}
    of_source = dataclasses.replace(
        mapping,
        features=tuple(plain),
        # An optional feature that is left out may be all of its column.
        column_licences={n: text for n, text in mapping.column_licences.items() if n in columns},
        instruction_from=None,
        steps=StepSelection(),
        episodes=(),
        **({} if text is None else {"task": _TASK if has_text else text.keys[0]}),
    )
    ranges = _read_ranges(mapping.steps)
    return ComputedSource(source, mapping, tuple(computed), has_text, ranges), of_source


def _is_left_out(feature: FeatureMapping, source: Source) -> bool:
    return feature.optional and not _has_all(source, feature.sources)


def _has_all(source: Source, keys: Collection[str]) -> bool:
    return source.keys.keys() >= set(keys)


def _present(text: InstructionFrom, source: Source) -> list[str]:
    """The keys of the instruction that the source has; any of them may be absent, but not all."""
    return [key for key in text.keys if key in source.keys]


def _plain(
    feature: FeatureMapping, computed: Mapping[str, ComputedFeature], source: Source
) -> FeatureMapping:
    """The feature by the one key that holds what was computed; by a missing one where it lacks."""
    if not feature.is_computed:
        return feature
    if feature.key in computed:
        name = computed[feature.key].key
    else:
        name = next(key for key in feature.sources if key not in source.keys)
    return dataclasses.replace(feature, source=name, joined=(), compute=())


def _selecting(mapping: SourceMapping) -> set[str]:
    """Keys of the source that decide which steps and episodes are kept."""
    return {condition.key for condition in mapping.episodes} | set(mapping.steps.id_keys)


def _types(source: Source) -> dict[str, ValueType]:
    types = {}
    for name, key in source.keys.items():
        types[name] = ValueType(key.kind, key.dtype, key.shape)
        # Decoding and encoding again would change what is stored as it is.
        if key.kind == "image" and not key.jpeg_quality:
            types[name] = ValueType("other", f"encoded image {key.dtype}", key.shape)
    return types


def _check(source: Source, mapping: SourceMapping, computed: Sequence[ComputedFeature]) -> None:
    """Checks types before any episode is read.

    Raises:
      SchemaError: With all that does not fit.
    """
    types = _types(source)
    problems = _selection_problems(mapping, types)
    for feature in computed:
        try:
            feature.type(types)
        except ValueError as error:
            problems.append(f"{feature.mapping.key}: {error}")
    text = mapping.instruction_from
    if text is not None:
        try:
            text.check({key: types[key] for key in _present(text, source)})
        except ValueError as error:
            problems.append(f"instruction_from: {error}")
    if problems:
        raise SchemaError(
            where=source.declaration,
            expected="keys of the types that the operations of the mapping take",
            found="; ".join(problems),
            remedy=_FIX_MAPPING,
        )


def _selection_problems(mapping: SourceMapping, types: Mapping[str, ValueType]) -> list[str]:
    """What is wrong with the keys that decide which steps and episodes are kept."""
    missing = sorted(_selecting(mapping) - set(types))
    problems = [_missing_key(key, types) for key in missing]
    for condition in mapping.episodes:
        wanted = "text" if condition.matches else "tensor"
        if condition.key in types and types[condition.key].kind != wanted:
            by = "matches" if condition.matches else "equals"
            problems.append(
                f"episodes: {by} needs a {wanted}, and {condition.key} is {types[condition.key]}"
            )
    return problems


def _missing_key(key: str, keys: Collection[str]) -> str:
    nearest = nearest_name(key, keys)
    return f"selection: the source has no key {key}" + (f" ({nearest}?)" if nearest else "")


def _read_ranges(steps: StepSelection) -> Ranges | None:
    """The ranges of steps by episode; None where the mapping names no file of them."""
    if not steps.ranges_file:
        return None
    expected, remedy = "a JSON file of ranges of steps by episode", "Name it in steps.ranges_file."
    text = read_text(steps.ranges_file, expected=expected, remedy=remedy)
    parse_json(text, where=steps.ranges_file, expected=expected, remedy=remedy)
    try:
        return parse_ranges(text)
    except ValueError as error:
        raise DataError(
            where=steps.ranges_file, expected=expected, found=str(error), remedy=remedy
        ) from error


@dataclasses.dataclass(frozen=True)
class ComputedSource(WrappedSource):
    """A source with more keys, and fewer steps and episodes; see `compute_source`."""

    mapping: SourceMapping
    """What is computed and kept."""
    computed: tuple[ComputedFeature, ...]
    """Its computed features, those whose keys the source has."""
    has_text: bool
    """Whether the instruction is computed."""
    ranges: Ranges | None
    """Ranges of steps by episode; None: there are none."""

    @property
    def keys(self) -> Mapping[str, SourceKey]:
        """Those of the source, and one for each computed feature in place of what it is made of."""
        return self._keys

    @functools.cached_property
    def _keys(self) -> Mapping[str, SourceKey]:
        types = _types(self.source)
        made: dict[str, SourceKey] = {}
        for feature in self.computed:
            type_ = feature.type(types)
            quality = self._quality(feature) if type_.kind == "image" else 0
            made[feature.key] = SourceKey(
                feature.key, type_.kind, type_.shape, type_.dtype, jpeg_quality=quality
            )
        if self.has_text:
            made[_TASK] = SourceKey(_TASK, "text", (), "utf8")
        # A key that was only computed with is mapped, and nobody has to map or ignore it.
        held = {key: spec for key, spec in self.source.keys.items() if key not in self._consumed}
        return dict(sorted((held | made).items()))

    def _quality(self, feature: ComputedFeature) -> int:
        """The quality at which a computed image is encoded: that of its source."""
        (source,) = feature.mapping.sources
        return self.source.keys[source].jpeg_quality

    @functools.cached_property
    def _consumed(self) -> frozenset[str]:
        """Keys of the source that serve to compute and to select, and become no feature as is."""
        text = self.mapping.instruction_from
        consumed = {*_selecting(self.mapping), *(text.keys if text is not None else ())}
        for feature in self.mapping.features:
            consumed |= set(feature.sources) if feature.is_computed else set()
        as_they_are = {self.mapping.source_id, *([] if self.has_text else [self.mapping.task_key])}
        for feature in self.mapping.features:
            as_they_are |= set() if feature.is_computed else set(feature.sources)
        return frozenset(consumed - as_they_are)

    @property
    def notes(self) -> Mapping[str, str]:
        """The source's, and the checksum of the ranges."""
        notes = dict(self.source.notes)
        if self.ranges is not None:
            notes["step_ranges"] = f"{self.mapping.steps.ranges_file}, {json_checksum(self.ranges)}"
        return notes

    def episodes(
        self, shard: SourceShard, wanted: Collection[str] | None = None
    ) -> Iterator[SourceEpisode]:
        """Yields the episodes that are kept and have steps left, with the computed values.

        One whose values an operation cannot take has an error in their place.
        """
        wanted = set(self.keys) if wanted is None else set(wanted)
        needed = self._needed(wanted)
        for episode in self.source.episodes(shard, needed):
            if isinstance(episode.values, UserError):
                yield episode
                continue
            values = self._episode(episode.values, wanted, episode.where)
            if values is not None:
                yield dataclasses.replace(episode, values=values)
            del episode, values  # before the next one is read

    @functools.cached_property
    def ahead(self) -> int:
        """How many steps the computed features look ahead, whichever of them are read."""
        return max((feature.ahead for feature in self.computed), default=0)

    def _needed(self, wanted: Collection[str]) -> set[str]:
        """The source's keys that have to be read."""
        needed = {
            key
            for key in wanted
            if key in self.source.keys and self.source.keys[key].kind != "other"
        }
        for feature in self.computed:
            if feature.key in wanted:
                needed |= set(feature.mapping.sources)
        text = self.mapping.instruction_from
        if text is not None and _TASK in wanted:
            needed |= set(_present(text, self.source))
        needed |= _selecting(self.mapping)
        if not any(key.startswith(STEPS) for key in needed):
            # Something has to say how many steps there are, and numbers are the fastest to read.
            readable = [spec for spec in self.source.keys.values() if spec.kind != "other"]
            of_steps = [spec for spec in readable if spec.key.startswith(STEPS)]
            needed.add(min(of_steps, key=lambda spec: spec.kind != "tensor").key)
        return needed

    def _episode(
        self, values: Episode, wanted: Collection[str], where: str
    ) -> Episode | SchemaError | None:
        """The values of an episode that is kept; None for one that is not."""
        if not all(c.holds(values[c.key]) for c in self.mapping.episodes):
            return None
        num_steps = next(len(value) for key, value in values.items() if key.startswith(STEPS))
        steps = self.mapping.steps
        kept = steps.kept(
            num_steps,
            self.ahead,
            self.mapping.conventions.control_frequency_hz,
            self._ranges_of(values),
        )
        if not len(kept):
            return None
        named = {key: value for key, value in values.items() if key in wanted}
        try:
            # Here, because the steps that are kept are marked afresh.
            check_boundaries(named, where)
            named |= self._computed(values, wanted, num_steps)
        except SchemaError as error:
            return error
        except ValueError as error:
            return SchemaError(
                where=where,
                expected="values that the mapping's operations take",
                found=str(error),
                remedy="Correct the mapping, or fix the episode at the source.",
            )
        return named if len(kept) == num_steps else _selected(named, kept)

    def _ranges_of(self, values: Episode) -> Sequence[tuple[int, int]] | None:
        if self.ranges is None:
            return None
        keys = self.mapping.steps.id_keys
        texts = {key: bytes(values[key][0]).decode(errors="replace") for key in keys}
        return self.ranges.get(self.mapping.steps.name_of(texts), ())

    def _computed(self, values: Episode, wanted: Collection[str], num_steps: int) -> Episode:
        """What is computed of an episode, of all its steps, by key."""
        arrays = _Arrays(values, num_steps)
        made: Episode = {}
        for feature in self.computed:
            if feature.key in wanted:
                try:
                    value = feature.values(arrays, num_steps)
                except ValueError as error:
                    raise ValueError(f"feature {feature.mapping.key}, {error}") from error
                made[feature.key] = [bytes(value[0])] if feature.is_text else value
        text = self.mapping.instruction_from
        if text is not None and _TASK in wanted:
            made[_TASK] = text.texts(arrays)
        return made


class _Arrays(Mapping[str, np.ndarray]):
    """The values of an episode as operations take them: arrays with one value per step."""

    def __init__(self, values: Episode, num_steps: int) -> None:
        self._values = values
        self._num_steps = num_steps

    def __getitem__(self, key: str) -> np.ndarray:
        value = self._values[key]
        array = value if isinstance(value, np.ndarray) else _objects(value)
        return array if key.startswith(STEPS) else np.repeat(array, self._num_steps, axis=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _objects(blobs: Sequence[Blob]) -> np.ndarray:
    array = np.empty(len(blobs), object)
    array[:] = [bytes(blob) for blob in blobs]
    return array


def _selected(values: Episode, kept: np.ndarray) -> Episode:
    """Some steps of an episode, whose first and last are marked as such."""
    selected: Episode = {}
    for key, value in values.items():
        if not key.startswith(STEPS):
            selected[key] = value
        elif isinstance(value, np.ndarray):
            selected[key] = value[kept]
        else:
            selected[key] = [value[t] for t in kept.tolist()]
    # The steps that had the marks may be gone; the episode still ends as it did.
    for key, place in ((IS_FIRST, 0), (IS_LAST, -1), (IS_TERMINAL, -1)):
        marks = values.get(key)
        if isinstance(marks, np.ndarray) and marks.ndim == 1:
            moved = np.zeros(len(kept), marks.dtype)
            moved[place] = marks[place] if key == IS_TERMINAL else 1
            selected[key] = moved
    return selected
