"""Maps source keys to features and conventions, as data.

A mapping takes or ignores every key of its source. A key that it does neither with is an error,
so nothing is dropped unseen.
"""

import dataclasses
import difflib
import fnmatch
import glob
import math
from collections.abc import Mapping, Sequence

import numpy as np

from converters.mapping.episode_selection import EpisodeCondition, StepSelection
from converters.mapping.instruction_from import InstructionFrom
from converters.mapping.mapped_features import FeatureMapping, join, make_feature
from converters.sources.image_encoding import depth_images
from converters.sources.source import IS_FIRST, STEPS, Episode, Source, SourceKey
from pipeline.added_fields import LATER
from pipeline.data.conventions import Conventions, is_no_op
from pipeline.data.images import check_image
from pipeline.data.schema import (
    ACTION,
    EPISODES,
    SOURCE_ID,
    Blob,
    Column,
    Feature,
    Schema,
    to_rest,
)
from pipeline.errors import SchemaError

_TASK = f"{STEPS}language_instruction"


@dataclasses.dataclass(frozen=True)
class SourceMapping:
    """How the keys of one kind of source become a dataset."""

    features: tuple[FeatureMapping, ...]
    """What is taken."""
    conventions: Conventions
    """What the numbers mean."""
    task: str = _TASK
    """Key of the instruction; empty where the source has none."""
    source_id: str | None = None
    """Key of a text that names the episode; None where the source has none."""
    ignore: tuple[str, ...] = ()
    """Globs over keys that are left out on purpose."""
    licence: str = "unknown"
    """Licence of the data, as an SPDX identifier or in words."""
    column_licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Licences of the columns that have another one."""
    instruction: str = dataclasses.field(default="", metadata=LATER)
    """The instruction of every episode, in place of a key; empty, without a key as well: goal
    images alone tell a policy its task."""
    instruction_from: InstructionFrom | None = dataclasses.field(default=None, metadata=LATER)
    """How the instruction of each step is made of several keys, or computed, in place of `task`."""
    steps: StepSelection = dataclasses.field(default=StepSelection(), metadata=LATER)
    """The steps that are kept."""
    episodes: tuple[EpisodeCondition, ...] = dataclasses.field(default=(), metadata=LATER)
    """What holds for the episodes that are kept, all of it."""
    names: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER)
    """Globs over names of datasets that it maps, besides the name of its file in the registry."""
    formats: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER)
    """Formats, in words, of the datasets that it maps: RLDS by default. Without `names` it maps all
    of them, which is for files that have one layout."""
    about: str = dataclasses.field(default="", metadata=LATER)
    """What the dataset is, in a line."""
    references: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER)
    """Where each claim of the mapping comes from."""

    def __post_init__(self) -> None:
        """Checks that no two keys become one feature, and that one field gives the instruction."""
        keys = [SOURCE_ID, *(m.key for m in self.features)]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ValueError(f"mapped more than once: {', '.join(doubled)}")
        if self.instruction and self.task not in ("", _TASK):
            raise ValueError(f"instruction and task {self.task!r}: give one of them")
        if self.instruction_from and (self.instruction or self.task not in ("", _TASK)):
            raise ValueError("instruction_from stands in place of instruction and task")
        target = self.conventions.control_frequency_hz
        recorded = self.steps.resample_from_hz
        if recorded is not None and not target < recorded < math.inf:
            raise ValueError(
                f"steps.resample_from_hz {recorded} must be finite and above "
                f"conventions.control_frequency_hz {target}: steps are left out, none is made up"
            )
        held = self.conventions
        if ACTION not in keys and (held.all_grippers or held.no_op_threshold is not None):
            raise ValueError(f"{held.gripper_field} and no_op_threshold need a feature {ACTION}")
        strange = set(self.column_licences) - {EPISODES, *(m.column for m in self.features)}
        if strange:
            raise ValueError(f"column_licences of no column: {', '.join(sorted(strange))}")

    @property
    def is_computed(self) -> bool:
        """Whether it computes values or selects steps or episodes; see `computed_source`."""
        features = any(feature.is_computed for feature in self.features)
        texts = self.instruction_from is not None
        return features or texts or self.steps != StepSelection() or bool(self.episodes)

    @property
    def task_key(self) -> str:
        """Key of the instruction; empty where it is the same text everywhere, or none."""
        return "" if self.instruction else self.task

    def fitted(self, source: Source) -> "SourceMapping":
        """The mapping of a source without any text but its name: it needs no `task = ""`."""
        texts = {key.key for key in source.keys.values() if key.kind == "text"}
        # Only the default key is dropped: a task that was named and is missing is an error.
        if self.task == _TASK and not texts - {self.source_id}:
            return dataclasses.replace(self, task="")
        return self

    def with_instruction(self, text: str) -> "SourceMapping":
        """The mapping with one instruction for every episode; the keys of its own are left out."""
        keys = self.instruction_from.keys if self.instruction_from else (self.task,)
        ignore = (*self.ignore, *(glob.escape(key) for key in keys if key))
        return dataclasses.replace(
            self, task="", instruction_from=None, instruction=text, ignore=ignore
        )

    def schema(self, source: Source) -> Schema:
        """The columns that a source becomes.

        Raises:
          SchemaError: A mapped key that the source does not have or whose type does not fit, or
            keys of the source that are neither mapped nor ignored; all of them at once.
        """
        where = source.declaration
        self._check_covered(source.keys, where)
        self._check_texts(source.keys, where)
        # The episode column exists even without a feature: it holds lengths, and comes first.
        columns: dict[str, list[Feature]] = {EPISODES: []}
        for mapping in self.features:
            # An optional feature without all of its sources is left out.
            if source.keys.keys() >= set(mapping.sources):
                keys = [source.keys[key] for key in mapping.sources]
                made = make_feature(mapping, keys, where)
                columns.setdefault(mapping.column, []).append(made)
        self._check_action(columns, where)
        self._check_rotations(columns, where)
        if self.source_id is not None:
            named = Feature(SOURCE_ID, "text", (), "utf8", None, self.source_id, "utf8")
            columns[EPISODES].append(named)
        return Schema(
            tuple(
                Column(name, "episode" if name == EPISODES else "step", tuple(features))
                for name, features in columns.items()
            )
        )

    def _check_texts(self, keys: Mapping[str, SourceKey], where: str) -> None:
        for role, key in (("task", self.task_key), ("source_id", self.source_id)):
            if key and keys[key].kind != "text":
                raise SchemaError(
                    where=f"{where}, {key}",
                    expected=f"a text, as {role} of the mapping",
                    found=f"{keys[key].dtype}{list(keys[key].shape)}",
                    remedy=f"Name the key of a text as {role}.",
                )
        if self.source_id is not None and self.source_id.startswith(STEPS):
            raise SchemaError(
                where=f"{where}, {self.source_id}",
                expected="one text per episode, as source_id of the mapping",
                found="one per step",
                remedy="Name a key outside `steps/` as source_id, or none.",
            )

    def _check_action(self, columns: Mapping[str, Sequence[Feature]], where: str) -> None:
        """The action is a trajectory; what the conventions say of it fits its dimensions."""
        dims = [gripper.dim for gripper in self.conventions.all_grippers]
        for name, features in columns.items():
            for feature in features:
                if feature.key != ACTION:
                    continue
                if name != EPISODES:
                    raise SchemaError(
                        where=f"{where}, {feature.source}",
                        expected=f"the feature {ACTION} in the column {EPISODES}",
                        found=f"the column {name}",
                        remedy="Leave its column out of the mapping.",
                    )
                if not any(part.source.startswith(STEPS) for part in feature.origins):
                    raise SchemaError(
                        where=f"{where}, {feature.source}",
                        expected=f"the feature {ACTION} from a key below {STEPS}",
                        found="one value of the whole episode",
                        remedy="Name the key of the commands.",
                    )
                # There may be no gripper, but the action still needs its one axis.
                if max(dims, default=0) >= feature.shape[0]:
                    field = self.conventions.gripper_field
                    raise SchemaError(
                        where=f"{where}, {feature.source}",
                        expected="an action of one axis with the "
                        f"{field} {', '.join(map(str, dims))} of the mapping",
                        found=f"{feature.dtype}{list(feature.shape)}",
                        remedy=f"Set conventions.{field} to an index of the action.",
                    )

    def _check_rotations(self, columns: Mapping[str, Sequence[Feature]], where: str) -> None:
        """Each rotation of the conventions is inside a vector of the dataset."""
        shapes = {f.key: f.shape for features in columns.values() for f in features}
        for pose in self.conventions.rotations:
            shape = shapes.get(pose.feature, ())
            if len(shape) != 1 or pose.dims.stop > shape[0]:
                raise SchemaError(
                    where=f"{where}, conventions.rotations",
                    expected=f"{pose} inside a vector of the mapping's features",
                    found=str(list(shape)) if pose.feature in shapes else "no such feature",
                    remedy="Correct its feature, dim or representation in the mapping.",
                )

    def _ignores(self, key: SourceKey) -> bool:
        """Whether a glob names the key, or the sequence of images that it is a view of."""
        # A view of a sequence of images is also ignored by the name of the sequence.
        names = {key.key, key.stored}
        return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.ignore)

    def _check_covered(self, keys: Mapping[str, SourceKey], where: str) -> None:
        texts = {key for key in (self.task_key, self.source_id) if key}
        required = {key for m in self.features if not m.optional for key in m.sources} | texts
        known = {key for m in self.features for key in m.sources} | texts
        missing = sorted(required - set(keys))
        unknown = [
            key for key, spec in keys.items() if key not in known and not self._ignores(spec)
        ]
        if missing or unknown:
            note = ""
            if self.task_key in missing:
                note = (
                    'Where the source has no instruction, write task = "" or instruction = "...". '
                )
            elif self.instruction and any(keys[key].kind == "text" for key in unknown):
                note = "An instruction for all episodes replaces the source's: ignore its key. "
            raise SchemaError(
                where=where,
                expected="every key mapped or ignored, and every mapped key there",
                found=f"unmapped: {', '.join(unknown) or 'none'}; "
                f"missing: {', '.join(_with_similar(key, unknown) for key in missing) or 'none'}",
                remedy=note
                + "Correct the mapping, or write one: `octograin convert SRC --describe >"
                " mapping.toml`, edit it, and convert with `--mapping mapping.toml`.",
            )


def _with_similar(key: str, unmapped: Sequence[str]) -> str:
    """A missing key, followed by the unmapped key of the source that is spelled most like it."""
    # By the last part: the common `steps/` would make any two keys alike.
    names = {one.rpartition("/")[2]: one for one in unmapped}
    similar = difflib.get_close_matches(key.rpartition("/")[2], names, n=1)
    return f"{key or repr(key)} ({names[similar[0]]}?)" if similar else key or repr(key)


@dataclasses.dataclass(frozen=True)
class Standardized:
    """An episode in its types at rest."""

    values: Mapping[str, np.ndarray | list[Blob]]
    """Values by feature key: (t, *shape), or t encoded images; for the source id, one text."""
    tasks: tuple[str, ...]
    """The instruction of each of the t steps."""
    removed: tuple[str, ...]
    """The instructions of the steps that the no-op filter left out."""

    @property
    def num_steps(self) -> int:
        """Steps that are left; 0 where none moves."""
        return len(self.tasks)


def standardize(
    episode: Episode, schema: Schema, mapping: SourceMapping, where: str
) -> Standardized:
    """A source episode under its feature keys, in its types at rest, without no-ops.

    Args:
      episode: By source key, as it was read.
      schema: Schema of the dataset.
      mapping: Names the instruction and the no-op filter.
      where: File and episode, for errors.

    Raises:
      SchemaError: A value that the dtype law refuses, a low-dimensional one that is not finite
        (its statistics would not be either), an image of another size, or text that is not UTF-8.
      DataError: An image whose header is not readable.
    """
    # Any key of the steps: the source has checked that all agree.
    num_steps = next(len(value) for key, value in episode.items() if key.startswith(STEPS))
    values: dict[str, np.ndarray | list[Blob]] = {}
    for column, feature in schema.features():
        value = _each_step(episode, feature, num_steps, where)
        if feature.kind == "depth":
            value = depth_images(value, feature, where)
        elif isinstance(value, np.ndarray):
            value = to_rest(value, feature, where)
            # Statistics are computed from these; NaN in one value would spoil all of them.
            if column.per == "episode" and feature.dtype == "float32":
                _check_finite(value, f"{where}, {feature.source}")
        elif feature.kind == "image":
            for t, encoded in enumerate(value):
                # The header alone, 9 ms for 1,973 images; `check_images` decodes them.
                check_image(encoded, feature.shape, f"{where}, {feature.source}, step {t}")
        else:
            # Decoded to check the UTF-8; the bytes are stored as they are.
            _decoded(value, f"{where}, {feature.source}")
        values[feature.key] = value
    task = mapping.task_key
    texts = _decoded(episode[task], f"{where}, {task}") if task else [mapping.instruction]
    # A text of the whole episode holds for each of its steps.
    tasks = tuple(texts * (num_steps // len(texts)))
    if mapping.conventions.no_ops != "removed_at_conversion":
        return Standardized(values, tasks, ())
    return _without_no_ops(values, tasks, schema, mapping.conventions)


def _without_no_ops(
    values: Mapping[str, np.ndarray | list[Blob]],
    tasks: tuple[str, ...],
    schema: Schema,
    conventions: Conventions,
) -> Standardized:
    """The steps that move; the first of them has `is_first`."""
    removed = is_no_op(np.asarray(values[ACTION]), conventions)
    if not removed.any():
        return Standardized(values, tasks, ())
    kept = np.flatnonzero(~removed).tolist()
    filtered: dict[str, np.ndarray | list[Blob]] = {}
    for _, feature in schema.features():
        value = values[feature.key]
        if feature.kind == "text":
            filtered[feature.key] = value
        elif isinstance(value, np.ndarray):
            filtered[feature.key] = value[kept]
        else:
            filtered[feature.key] = [value[t] for t in kept]
        # The step that had the flag may be gone.
        if feature.source == IS_FIRST and kept:
            first = np.zeros((len(kept), *feature.shape), feature.numpy_dtype)
            first[0] = 1
            filtered[feature.key] = first
    left_out = np.flatnonzero(removed).tolist()
    return Standardized(filtered, tuple(tasks[t] for t in kept), tuple(tasks[t] for t in left_out))


def _each_step(
    episode: Episode, feature: Feature, num_steps: int, where: str
) -> np.ndarray | list[Blob]:
    """The values of a feature; those of the whole episode repeated for each step, but a text."""
    if feature.parts and feature.kind == "tensor":
        return join(episode, feature, num_steps, where)
    value = episode[feature.source]
    if feature.source.startswith(STEPS) or feature.kind == "text":
        return value
    if isinstance(value, np.ndarray):
        # A copy per step, because a record of a step column holds one step.
        return np.repeat(value, num_steps, axis=0)
    return value * num_steps


def _check_finite(values: np.ndarray, where: str) -> None:
    # All axes but time: (t, n)
    steps = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if steps.size:
        raise SchemaError(
            where=f"{where}, step {steps[0]}",
            expected="finite values, for its statistics",
            found=f"{values[steps[0]].tolist()}, and {steps.size - 1} more such steps",
            remedy="Fix the episode at the source, or ignore the key in the mapping.",
        )


def _decoded(texts: Sequence[Blob] | np.ndarray, where: str) -> list[str]:
    """Texts from their UTF-8."""
    decoded = []
    for text in texts:
        try:
            # `bytes` copies a memoryview, which has no `decode`.
            decoded.append(bytes(text).decode())
        except UnicodeDecodeError as error:
            raise SchemaError(
                where=where,
                expected="a text in UTF-8",
                found=repr(bytes(text[:40])),
                remedy="Write the text in UTF-8 at the source.",
            ) from error
    return decoded
