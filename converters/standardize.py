"""Which source key becomes which feature, and what its numbers mean: as data.

A mapping takes or ignores every key of its source. A key that it does neither with is an error,
so nothing is dropped unseen.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from converters.rlds.example import Episode
from converters.rlds.source import STEPS, RldsSource, SourceKey
from pipeline.conventions import Conventions, is_no_op
from pipeline.errors import SchemaError
from pipeline.images import check_image
from pipeline.schema import (
    ACTION,
    EPISODES,
    SOURCE_ID,
    Blob,
    Column,
    Feature,
    Schema,
    rest_dtype,
    to_rest,
)

IMAGES = "steps"

_IS_FIRST = f"{STEPS}is_first"
_RESERVED = ("action_pad_mask", "observation/timestep", "observation/timestep_pad_mask", "task")
_RESERVED_FOLDERS = ("task/", "observation/pad_mask_dict")

_NUM_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class FeatureMapping:
    """One source key and the feature that it becomes."""

    key: str
    """Path in the batch, such as `observation/proprio`."""
    source: str
    """Key in the source, such as `steps/observation/state`."""
    column: str = EPISODES
    """`episodes` for low-dimensional trajectories, `steps` for images, or the name of a column of
    its own, such as `vggt_tokens`."""
    dims: tuple[str, ...] = ()
    """Names of the last axis with their units."""
    optional: bool = False
    """Whether a source without the key is fine."""

    def __post_init__(self) -> None:
        """Checks that the key is a path of a batch, and the column a folder of the dataset."""
        is_path = re.fullmatch(r"[\w-]+(/[\w-]+)*", self.key)
        if not is_path or self.key in _RESERVED or self.key.startswith(_RESERVED_FOLDERS):
            raise ValueError(f"key {self.key!r} must be a path that no mask or task has")
        if not re.fullmatch(r"\w[\w.-]*", self.column) or self.column.endswith(".json"):
            raise ValueError(f"column {self.column!r} of {self.key} must be the name of a folder")


@dataclasses.dataclass(frozen=True)
class SourceMapping:
    """How the keys of one kind of source become a dataset."""

    features: tuple[FeatureMapping, ...]
    """What is taken."""
    conventions: Conventions
    """What the numbers mean."""
    task: str = "steps/language_instruction"
    """Key of the instruction."""
    source_id: str | None = None
    """Key of a text that names the episode; None where the source has none."""
    ignore: tuple[str, ...] = ()
    """Globs over keys that are left out on purpose."""
    licence: str = "unknown"
    """Of the data, as an SPDX identifier or in words."""
    column_licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of the columns that have another one."""

    def __post_init__(self) -> None:
        """Checks that no two source keys become one feature."""
        keys = [SOURCE_ID, *(m.key for m in self.features)]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ValueError(f"mapped more than once: {', '.join(doubled)}")
        speaks_of_action = (self.conventions.gripper_dim, self.conventions.no_op_threshold)
        if ACTION not in keys and speaks_of_action != (None, None):
            raise ValueError(f"gripper_dim and no_op_threshold need a feature {ACTION}")
        strange = set(self.column_licences) - {EPISODES, *(m.column for m in self.features)}
        if strange:
            raise ValueError(f"column_licences of no column: {', '.join(sorted(strange))}")

    def schema(self, source: RldsSource) -> Schema:
        """The columns that a source becomes.

        Raises:
          SchemaError: A mapped key that the source does not have or whose type does not fit, or
            keys of the source that are neither mapped nor ignored; all of them at once.
        """
        where = str(source.directory / "features.json")
        self._check_covered(source.keys, where)
        self._check_texts(source.keys, where)
        self._check_action(source.keys, where)
        taken = [m for m in self.features if m.source in source.keys]
        episode = [_feature(m, source.keys[m.source], where) for m in taken if m.column == EPISODES]
        if self.source_id is not None:
            episode.append(Feature(SOURCE_ID, "text", (), "utf8", None, self.source_id, "utf8"))
        columns = [Column(EPISODES, "episode", tuple(episode))]
        for name in dict.fromkeys(m.column for m in taken if m.column != EPISODES):
            stored = (_feature(m, source.keys[m.source], where) for m in taken if m.column == name)
            columns.append(Column(name, "step", tuple(stored)))
        return Schema(tuple(columns))

    def _check_texts(self, keys: Mapping[str, SourceKey], where: str) -> None:
        for role, key in (("task", self.task), ("source_id", self.source_id)):
            if key is not None and keys[key].kind != "text":
                raise SchemaError(
                    where=f"{where}, {key}",
                    expected=f"a text, as {role} of the mapping",
                    found=f"{keys[key].dtype}{list(keys[key].shape)}",
                    remedy=f"Name the key of a text as {role}.",
                )
        if self.source_id is not None and self.source_id.startswith(STEPS):
            raise SchemaError(
                where=f"{where}, {self.source_id}",
                expected="one text an episode, as source_id of the mapping",
                found="one a step",
                remedy="Name a key outside `steps/` as source_id, or none.",
            )

    def _check_action(self, keys: Mapping[str, SourceKey], where: str) -> None:
        """The action is a trajectory; what the conventions say of it fits its dimensions."""
        dim = self.conventions.gripper_dim
        is_flat = dim is not None or self.conventions.no_op_threshold is not None
        for mapping in self.features:
            if mapping.key != ACTION:
                continue
            shape = keys[mapping.source].shape
            place = f"{where}, {mapping.source}"
            if mapping.column != EPISODES:
                raise SchemaError(
                    where=place,
                    expected=f"the feature {ACTION} in the column {EPISODES}",
                    found=f"the column {mapping.column}",
                    remedy="Leave its column out of the mapping.",
                )
            if is_flat and (len(shape) != 1 or (dim or 0) >= shape[0]):
                raise SchemaError(
                    where=place,
                    expected=f"an action of one axis with the gripper_dim {dim} of the mapping",
                    found=f"{keys[mapping.source].dtype}{list(shape)}",
                    remedy="Set conventions.gripper_dim to an index of the action.",
                )

    def _ignores(self, key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, glob) for glob in self.ignore)

    def _check_covered(self, keys: Iterable[str], where: str) -> None:
        required = {m.source for m in self.features if not m.optional} | {self.task}
        known = {m.source for m in self.features} | {self.task}
        if self.source_id is not None:
            required.add(self.source_id)
            known.add(self.source_id)
        missing = sorted(required - set(keys))
        unknown = [key for key in keys if key not in known and not self._ignores(key)]
        if missing or unknown:
            raise SchemaError(
                where=where,
                expected="every key mapped or ignored, and every mapped key there",
                found=f"unmapped: {', '.join(unknown) or 'none'}; "
                f"missing: {', '.join(key or repr(key) for key in missing) or 'none'}",
                remedy="Write a mapping: `python -m converters.rlds SRC --describe > mapping.toml`,"
                " edit it, and convert with `--mapping mapping.toml`.",
            )


def _feature(mapping: FeatureMapping, key: SourceKey, where: str) -> Feature:
    """The feature that a source key becomes, by the dtype law."""
    where = f"{where}, {key.key}"
    if key.kind == "other":
        raise SchemaError(
            where=where,
            expected="a text, or an image or tensor of known shape without an encoding",
            found=key.dtype,
            remedy="Write the source with such a feature, or ignore the key in the mapping.",
        )
    if key.kind == "text":
        raise SchemaError(
            where=where,
            expected="numbers or an image",
            found="a text",
            remedy="Texts are stored once a task or episode: name the key as `task` or"
            " `source_id`, or ignore it.",
        )
    if key.kind == "image" and (mapping.column == EPISODES or key.dtype != "uint8"):
        raise SchemaError(
            where=where,
            expected="a uint8 image in a step column, such as `steps`",
            found=f"{key.dtype} in the column {mapping.column}",
            remedy='Set column = "steps" for it in the mapping, or ignore the key.',
        )
    if key.kind == "image" and key.shape[-1] != _NUM_CHANNELS:
        raise SchemaError(
            where=where,
            expected=f"an image of {_NUM_CHANNELS} channels",
            found=f"{list(key.shape)}",
            remedy="Write the source with such images, or ignore the key.",
        )
    if mapping.dims and key.shape[-1:] != (len(mapping.dims),):
        raise SchemaError(
            where=where,
            expected=f"{len(mapping.dims)} values on the last axis, as dims of {mapping.key} says",
            found=f"{key.dtype}{list(key.shape)}",
            remedy="Name each of its dimensions in the mapping's dims, or none.",
        )
    dtype = rest_dtype(key.dtype, where)
    batch_dtype = "float32" if dtype == "bfloat16" else dtype
    return Feature(
        mapping.key,
        key.kind,
        key.shape,
        dtype,
        batch_dtype,
        mapping.source,
        key.dtype,
        mapping.dims,
    )


@dataclasses.dataclass(frozen=True)
class Standardized:
    """An episode in its types at rest."""

    values: Mapping[str, np.ndarray | list[Blob]]
    """By feature key: (t, *shape), or t encoded images; for the source id, one text."""
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
      schema: Of the dataset.
      mapping: Names the instruction and the no-op filter.
      where: File and episode, for errors.

    Raises:
      SchemaError: A value that the dtype law refuses, a low-dimensional one that is not finite
        (its statistics would not be either), an image of another size, or text that is not UTF-8.
      DataError: An image whose header is not readable.
    """
    num_steps = next(len(value) for key, value in episode.items() if key.startswith(STEPS))
    values: dict[str, np.ndarray | list[Blob]] = {}
    for column, feature in schema.features():
        value = _each_step(episode[feature.source], feature, num_steps)
        if isinstance(value, np.ndarray):
            value = to_rest(value, feature, where)
            if column.per == "episode" and feature.dtype == "float32":
                _check_finite(value, f"{where}, {feature.source}")
        elif feature.kind == "image":
            for t, encoded in enumerate(value):
                check_image(encoded, feature.shape, f"{where}, {feature.source}, step {t}")
        else:
            _decoded(value, f"{where}, {feature.source}")
        values[feature.key] = value
    texts = _decoded(episode[mapping.task], f"{where}, {mapping.task}")
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
        if feature.source == _IS_FIRST and kept:
            first = np.zeros((len(kept), *feature.shape), feature.numpy_dtype)
            first[0] = 1
            filtered[feature.key] = first
    left_out = np.flatnonzero(removed).tolist()
    return Standardized(filtered, tuple(tasks[t] for t in kept), tuple(tasks[t] for t in left_out))


def _each_step(
    value: np.ndarray | list[Blob], feature: Feature, num_steps: int
) -> np.ndarray | list[Blob]:
    """A value of the whole episode, repeated for each of its steps; its text stays one."""
    if feature.source.startswith(STEPS) or feature.kind == "text":
        return value
    if isinstance(value, np.ndarray):
        return np.repeat(value, num_steps, axis=0)
    return value * num_steps


def _check_finite(values: np.ndarray, where: str) -> None:
    steps = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if steps.size:
        raise SchemaError(
            where=f"{where}, step {steps[0]}",
            expected="finite values, for its statistics",
            found=f"{values[steps[0]].tolist()}, and {steps.size - 1} more such steps",
            remedy="Mend the episode at the source, or ignore the key in the mapping.",
        )


def _decoded(texts: Sequence[Blob] | np.ndarray, where: str) -> list[str]:
    """Texts from their UTF-8."""
    decoded = []
    for text in texts:
        try:
            decoded.append(bytes(text).decode())
        except UnicodeDecodeError as error:
            raise SchemaError(
                where=where,
                expected="a text in UTF-8",
                found=repr(bytes(text[:40])),
                remedy="Write the text in UTF-8 at the source.",
            ) from error
    return decoded
