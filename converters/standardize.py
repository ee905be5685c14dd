"""Which source key becomes which feature, and what its numbers mean: as data.

A mapping takes or ignores every key of its source. A key that it does neither with is an error,
so nothing is dropped unseen.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping

import numpy as np

from converters.rlds.source import STEPS, Episode, RldsSource, SourceKey
from pipeline.conventions import Conventions
from pipeline.errors import SchemaError
from pipeline.images import check_image
from pipeline.schema import (
    ACTION,
    EPISODES,
    SOURCE_ID,
    TASK_INDEX,
    Column,
    Feature,
    Schema,
    rest_dtype,
    to_rest,
)

IMAGES = "steps"

Standardized = dict[str, np.ndarray | list[bytes]]
"""An episode by feature key, in its types at rest."""

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
        """Checks that the column is a folder inside the dataset directory."""
        if not re.fullmatch(r"\w[\w.-]*", self.column):
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

    def __post_init__(self) -> None:
        """Checks that no two source keys become one feature."""
        keys = [TASK_INDEX, SOURCE_ID, *(m.key for m in self.features)]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ValueError(f"mapped more than once: {', '.join(doubled)}")

    def schema(self, source: RldsSource) -> Schema:
        """The columns that a source becomes.

        Raises:
          SchemaError: A mapped key that the source does not have or whose type does not fit, or
            keys of the source that are neither mapped nor ignored; all of them at once.
        """
        where = str(source.directory / "features.json")
        self._check_covered(source.keys, where)
        self._check_texts(source.keys, where)
        self._check_gripper(source.keys, where)
        taken = [m for m in self.features if m.source in source.keys]
        episode = [_task_feature(self.task)]
        episode += [
            _feature(m, source.keys[m.source], where) for m in taken if m.column == EPISODES
        ]
        if self.source_id is not None:
            episode.append(Feature(SOURCE_ID, "text", (), "utf8", None, self.source_id))
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

    def _check_gripper(self, keys: Mapping[str, SourceKey], where: str) -> None:
        dim = self.conventions.gripper_dim
        for mapping in self.features:
            if mapping.key == ACTION and dim is not None and (dim,) >= keys[mapping.source].shape:
                raise SchemaError(
                    where=f"{where}, {mapping.source}",
                    expected=f"an action with the gripper_dim {dim} of the mapping",
                    found=f"{keys[mapping.source].dtype}{list(keys[mapping.source].shape)}",
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


def _task_feature(source: str) -> Feature:
    return Feature(TASK_INDEX, "tensor", (), "int32", "int32", source)


def _feature(mapping: FeatureMapping, key: SourceKey, where: str) -> Feature:
    """The feature that a source key becomes, by the dtype law."""
    where = f"{where}, {key.key}"
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
    dtype = rest_dtype(key.dtype, where)
    batch_dtype = "float32" if dtype == "bfloat16" else dtype
    return Feature(
        mapping.key, key.kind, key.shape, dtype, batch_dtype, mapping.source, mapping.dims
    )


def standardize(
    episode: Episode, schema: Schema, tasks: dict[str, int], where: str
) -> Standardized:
    """A source episode under its feature keys, in its types at rest.

    Args:
      episode: By source key, as it was read.
      schema: Of the dataset.
      tasks: Index of every instruction so far; new ones are added.
      where: File and episode, for errors.

    Returns:
      By feature key: arrays (t, *shape) in their rest dtype; a list of t encoded images; for the
      source id, a list of one text.

    Raises:
      SchemaError: A value that the dtype law refuses, a low-dimensional one that is not finite
        (its statistics would not be either), an image of another size, or text that is not UTF-8.
      DataError: An image whose header is not readable.
    """
    num_steps = next(len(value) for key, value in episode.items() if key.startswith(STEPS))
    standardized: Standardized = {}
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
            texts = [_decoded(text, f"{where}, {feature.source}") for text in value]
            if feature.key == TASK_INDEX:
                value = np.array([tasks.setdefault(text, len(tasks)) for text in texts], np.int32)
        standardized[feature.key] = value
    return standardized


def _each_step(
    value: np.ndarray | list[bytes], feature: Feature, num_steps: int
) -> np.ndarray | list[bytes]:
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


def _decoded(text: bytes, where: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(
            where=where,
            expected="a text in UTF-8",
            found=repr(text[:40]),
            remedy="Write the text in UTF-8 at the source.",
        ) from error
