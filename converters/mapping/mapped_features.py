"""One feature of a mapping: the source keys that it names, and the types that it is stored in."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pydantic

from converters.operations.array_operations import Columns
from converters.operations.operations import AnyOperation
from converters.sources.source import STEPS, Episode, SourceKey
from pipeline.added_fields import LATER
from pipeline.data.schema import ACTION, EPISODES, Feature, SourcePart, rest_dtype, to_rest
from pipeline.errors import SchemaError

IMAGES = "steps"

_RESERVED = ("action_pad_mask", "observation/timestep", "observation/timestep_pad_mask", "task")
_RESERVED_FOLDERS = ("task/", "observation/pad_mask_dict")

# `from` is no name in Python; a manifest's mapping has the name of the field.
_FROM = pydantic.Field(validation_alias=pydantic.AliasChoices("from", "joined"))
# Pixels that a model reads have three.
_NUM_CHANNELS = 3
_NUM_AXES = 3
_INTEGER_DEPTH = ("uint16", "int32")
_FLOAT_DEPTH = ("float32", "float64")
EXACT_INTEGER = 2**24
"""Up to it float32 holds every integer."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a computed feature: some columns of a source key, or a constant."""

    source: str = ""
    """Key in the source; empty for a constant."""
    columns: str = ""
    """Its columns, such as `0:6`, `-1:` or `6`; empty: all."""
    constant: float | None = None
    """The value of every step, in place of a key."""
    width: int = 1
    """Columns of the constant."""
    compute: tuple[AnyOperation, ...] = ()
    """Operations on the columns, in this order."""

    def __post_init__(self) -> None:
        """Checks that it is one of the two, and the columns."""
        if (self.constant is None) != bool(self.source):
            raise ValueError(f"a part needs either a source or a constant, not {self}")
        if self.constant is not None and (self.columns or self.compute or self.width < 1):
            raise ValueError(f"a constant has a width of at least 1 and nothing else, not {self}")
        if self.constant is None and self.width != 1:
            raise ValueError(f"width {self.width} of {self.source}: only a constant has one")
        if self.columns:
            Columns(self.columns)

    @property
    def operations(self) -> tuple[AnyOperation, ...]:
        """All operations, the choice of columns included."""
        return ((Columns(self.columns),) if self.columns else ()) + self.compute


@dataclasses.dataclass(frozen=True)
class FeatureMapping:
    """One source key, or several that are joined, and the feature that it becomes."""

    key: str
    """Path in the batch, such as `observation/proprio`."""
    source: str = ""
    """Key in the source, such as `steps/observation/state`; empty where `from` names several."""
    column: str = EPISODES
    """`episodes` for low-dimensional trajectories, `steps` for images, or the name of a column of
    its own, such as `vggt_tokens`."""
    dims: tuple[str, ...] = ()
    """Names of the last axis with their units."""
    optional: bool = False
    """Whether a source without the key is fine."""
    joined: Annotated[tuple[str | Part, ...], _FROM] = dataclasses.field(default=(), metadata=LATER)
    """Keys of numbers and vectors, or parts that are computed from such, that become one float32
    vector, in this order; `from` in TOML."""
    grey_to_rgb: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether an image of one channel is taken in, as three equal ones."""
    compute: tuple[AnyOperation, ...] = dataclasses.field(default=(), metadata=LATER)
    """Operations on the value of `source`, or on the vector of `from`, in this order."""
    depth: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether it is a depth image: 16-bit PNG, or numbers of one value per pixel."""
    depth_unit: Literal["", "mm", "m"] = dataclasses.field(default="", metadata=LATER)
    """Unit of depth in the source. Empty: mm, of integers alone."""

    def __post_init__(self) -> None:
        """Checks that the key is a path of a batch, and the column a folder of the dataset."""
        is_path = re.fullmatch(r"[\w-]+(/[\w-]+)*", self.key)
        # A feature of these names would overwrite a mask of the batch.
        if not is_path:
            raise ValueError(
                f"key {self.key!r} must be words joined by '/', without spaces or dots"
            )
        if self.key in _RESERVED or self.key.startswith(_RESERVED_FOLDERS):
            raise ValueError(f"key {self.key!r} is one that a batch has itself")
        if not re.fullmatch(r"\w[\w.-]*", self.column) or self.column.endswith(".json"):
            raise ValueError(f"column {self.column!r} of {self.key} must be the name of a folder")
        if bool(self.joined) == bool(self.source):
            raise ValueError(f"{self.key} needs either source or from: the keys in the source")
        if self.depth and (self.joined or self.grey_to_rgb):
            raise ValueError(f"{self.key} is depth, which has one source and stays one channel")
        if self.depth_unit and not self.depth:
            raise ValueError(f"{self.key} has a depth_unit, so it needs depth = true")

    @property
    def is_computed(self) -> bool:
        """Whether its values are not those of the source, one beside the other."""
        return bool(self.compute) or any(isinstance(part, Part) for part in self.joined)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is joined; a key by itself is a part without operations."""
        named = self.joined or (self.source,)
        return tuple(part if isinstance(part, Part) else Part(part) for part in named)

    @property
    def sources(self) -> tuple[str, ...]:
        """The keys of the source that it is made of, in their order."""
        parts = self.parts
        operations = [o for part in parts for o in part.compute] + list(self.compute)
        others = [key for operation in operations for key in operation.keys]
        return (*(part.source for part in parts if part.source), *others)


def make_feature(mapping: FeatureMapping, keys: Sequence[SourceKey], where: str) -> Feature:
    """The feature that source keys become, by the dtype law.

    Args:
      mapping: Mapping of the feature.
      keys: Those that it names, in its order.
      where: The file that declares them, for errors.

    Raises:
      SchemaError: Where the law, or the place that the feature has in training, refuses a key.
    """
    if _is_episode_text(mapping, keys):
        return Feature(mapping.key, "text", (), "utf8", None, keys[0].key, "utf8")
    for key in keys:
        _check_storable(key, f"{where}, {key.key}")
    # An action that is no float32 vector, such as an integer, is made one.
    if mapping.joined or (mapping.key == ACTION and _needs_vector(keys[0])):
        feature = _vector(mapping, keys, where)
    elif mapping.depth:
        feature = _depth(mapping, keys[0], f"{where}, {keys[0].key}")
    elif keys[0].kind == "image":
        feature = _image(mapping, keys[0], f"{where}, {keys[0].key}")
    else:
        feature = _tensor(mapping, keys[0], f"{where}, {keys[0].key}")
    # Names are of the last axis.
    if mapping.dims and feature.shape[-1:] != (len(mapping.dims),):
        raise SchemaError(
            where=f"{where}, {feature.source}",
            expected=f"{len(mapping.dims)} values on the last axis, as dims of {mapping.key} says",
            found=f"{keys[0].dtype}{list(feature.shape)}",
            remedy="Name each of its dimensions in the mapping's dims, or none.",
        )
    return feature


def _is_episode_text(mapping: FeatureMapping, keys: Sequence[SourceKey]) -> bool:
    """Whether a feature is one text of the whole episode, which is in no batch."""
    is_text = keys[0].kind == "text" and not keys[0].key.startswith(STEPS)
    return is_text and not mapping.joined and mapping.column == EPISODES and not mapping.dims


def _check_storable(key: SourceKey, where: str) -> None:
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
            ' `source_id`, compute [{ op = "episode_text" }], or ignore it.',
        )


def _image(mapping: FeatureMapping, key: SourceKey, where: str) -> Feature:
    if mapping.column == EPISODES or key.dtype != "uint8":
        raise SchemaError(
            where=where,
            expected="a uint8 image in a step column, such as `steps`",
            found=f"{key.dtype} in the column {mapping.column}",
            remedy='Set column = "steps" for it in the mapping, or ignore the key.',
        )
    channels = 1 if mapping.grey_to_rgb else _NUM_CHANNELS
    if key.shape[-1] != channels:
        remedy = "Write the source with such images, or ignore the key."
        if key.shape[-1] == 1:
            remedy = "Set grey_to_rgb = true for three equal channels, or ignore the key."
        elif key.shape[-1] == _NUM_CHANNELS:
            remedy = "Leave grey_to_rgb out of the mapping."
        raise SchemaError(
            where=where,
            expected=f"an image of {channels} channel{'s'[: channels - 1]}",
            found=f"{list(key.shape)}",
            remedy=remedy,
        )
    shape = (*key.shape[:2], _NUM_CHANNELS)
    # The part keeps the source's shape, so that an export has one channel again.
    parts = (SourcePart(key.key, key.dtype, key.shape),) if mapping.grey_to_rgb else ()
    return Feature(
        mapping.key, "image", shape, "uint8", "uint8", key.key, "uint8", mapping.dims, parts
    )


def _depth(mapping: FeatureMapping, key: SourceKey, where: str) -> Feature:
    is_plane = len(key.shape) == _NUM_AXES - 1 or (
        len(key.shape) == _NUM_AXES and key.shape[-1] == 1
    )
    unit = mapping.depth_unit or ("" if key.dtype in _FLOAT_DEPTH else "mm")
    # Pixels of a PNG are integers, and integers of metres are no depth.
    dtypes = {"mm": (*_INTEGER_DEPTH, *_FLOAT_DEPTH), "m": _FLOAT_DEPTH, "": _FLOAT_DEPTH}[unit]
    dtypes = dtypes if key.kind == "tensor" else ("uint16",)
    if mapping.column == EPISODES or not is_plane or key.dtype not in dtypes or not unit:
        expected = f"depth in {unit or 'mm or m'}, {' or '.join(dtypes)} [h, w] or [h, w, 1]"
        remedy = 'Correct column = "steps" or depth_unit in the mapping, or ignore the key.'
        if not unit:
            expected += ", with its unit"
            remedy = 'Set depth_unit = "m" or "mm" for it in the mapping.'
        raise SchemaError(
            where=where,
            expected=f"{expected}, in a step column such as `steps`",
            found=f"{key.kind} {key.dtype}{list(key.shape)} in the column {mapping.column}",
            remedy=remedy,
        )
    shape = (*key.shape[:2], 1)
    # The part keeps the source's type where it is another one.
    is_same = (key.dtype, key.shape) == ("uint16", shape)
    parts = () if is_same else (SourcePart(key.key, key.dtype, key.shape),)
    names = (mapping.key, "depth", shape, "uint16", "float32", key.key, key.dtype, mapping.dims)
    return Feature(*names, parts, source_unit=unit)


def _tensor(mapping: FeatureMapping, key: SourceKey, where: str) -> Feature:
    dtype = rest_dtype(key.dtype, where)
    # bfloat16 is no dtype of a batch.
    batch_dtype = "float32" if dtype == "bfloat16" else dtype
    feature = Feature(
        mapping.key, "tensor", key.shape, dtype, batch_dtype, key.key, key.dtype, mapping.dims
    )
    is_observation = mapping.key.startswith("observation/")
    # Pixels of a whole trajectory in one record would be read for every sample of it.
    if feature.is_camera and is_observation and mapping.column == EPISODES:
        raise SchemaError(
            where=where,
            expected="a camera in a step column, such as `steps`",
            found=f"{key.dtype}{list(key.shape)} in the column {mapping.column}",
            remedy='Set column = "steps" for it in the mapping, or ignore the key.',
        )
    return feature


# --- vectors: what is joined, and the action


def _needs_vector(key: SourceKey) -> bool:
    """Whether an action is stored in another form: a policy learns a vector of float32."""
    return len(key.shape) != 1 or rest_dtype(key.dtype, key.key) != "float32"


def _vector(mapping: FeatureMapping, keys: Sequence[SourceKey], where: str) -> Feature:
    """A vector of float32 from numbers and vectors, a number being a vector of one."""
    for key in keys:
        rest_dtype(key.dtype, f"{where}, {key.key}")
        if key.kind != "tensor" or len(key.shape) > 1:
            # An action of several steps: training makes the chunks.
            horizon = " of one step, not of a horizon" if mapping.key == ACTION else ""
            raise SchemaError(
                where=f"{where}, {key.key}",
                expected=f"a number or a vector{horizon}, for the feature {mapping.key}",
                found=f"{key.kind} {key.dtype}{list(key.shape)}",
                remedy="Write the source with such values, or ignore the key in the mapping.",
            )
    parts = tuple(SourcePart(key.key, key.dtype, key.shape) for key in keys)
    return Feature(
        key=mapping.key,
        kind="tensor",
        shape=(sum(part.size for part in parts),),
        dtype="float32",
        batch_dtype="float32",
        source=" + ".join(mapping.sources),
        source_dtype="float32",
        dims=mapping.dims,
        parts=parts,
    )


def join(episode: Episode, feature: Feature, num_steps: int, where: str) -> np.ndarray:
    """The vectors of a feature of parts; float32 (t, d).

    Args:
      episode: By source key, as it was read.
      feature: Made by `make_feature`, of numbers.
      num_steps: Steps of the episode; a value of the whole episode is repeated for each.
      where: File and episode, for errors.

    Raises:
      SchemaError: A value that float32 does not hold, or that has another type than declared.
    """
    columns = []
    for part in feature.parts:
        # Each part by itself: it has its own dtype and shape.
        value = np.asarray(episode[part.source])
        dtype = rest_dtype(part.dtype, f"{where}, {part.source}")
        declared = Feature(feature.key, "tensor", part.shape, dtype, dtype, part.source)
        value = _exact(to_rest(value, declared, where), f"{where}, {part.source}")
        # A value of the whole episode for each step.
        if not part.source.startswith(STEPS):
            value = np.repeat(value, num_steps, axis=0)
        columns.append(value.reshape(num_steps, part.size))
    return np.concatenate(columns, axis=1)


def _exact(values: np.ndarray, where: str) -> np.ndarray:
    """The same numbers as float32."""
    # Above 2 ** 24 float32 skips integers.
    beyond = np.abs(values) > EXACT_INTEGER if values.dtype == np.int32 else np.zeros(1, bool)
    if beyond.any():
        raise SchemaError(
            where=where,
            expected=f"integers up to {EXACT_INTEGER}, which float32 holds",
            found=f"{values[beyond].ravel()[0]}",
            remedy="Leave the key out of the feature, or rescale it at the source.",
        )
    return values.astype(np.float32)
