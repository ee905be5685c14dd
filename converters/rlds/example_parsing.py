"""An episode from the bytes of its `tf.train.Example`, as numpy arrays of the declared types.

    Example   1: Features
    Features  1: entries of a map, one per key: 1: the key, 2: Feature
    Feature   one of 1: BytesList, 2: FloatList, 3: Int64List
    lists     1: bytes, one field a value; or all numbers packed in one field

The levels above the lists are walked here, and bytes and packed floats are taken as views of the
record: protobuf's own classes copy each value twice, which for tokens (534,528 floats a step) costs
ten times what reading the file does. Integers, few and of varying length, are left to protobuf.

Source: `tensorflow/core/example/{example,feature}.proto` and protobuf's encoding guide.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_feature_generated_pb2 as tf_feature

from converters.sources.source import STEPS, Episode, SourceKey
from pipeline.data.schema import Blob
from pipeline.errors import DataError, SchemaError

_KINDS = {1: "bytes_list", 2: "float_list", 3: "int64_list"}
_FLAT_VALUES = "ragged_flat_values"
_BYTES = 2
"""The wire type of a field that begins with its length."""
# A 64-bit number in groups of 7 bits needs at most 10 bytes.
_VARINT_BYTES = 10
_STEPS_VALUE = STEPS.rstrip("/")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


def parse_episode(
    record: Blob,
    keys: Mapping[str, SourceKey],
    where: str,
    wanted: Collection[str] | None = None,
) -> Episode:
    """The values of one serialized `tf.train.Example` that holds an episode.

    Args:
      record: The serialized message; the values are views of it where their type allows.
      keys: What it has to hold.
      where: File and episode, for errors.
      wanted: The keys whose values are taken and checked; None: all but those of kind `other`.

    Raises:
      DataError: Bytes that are no such message.
      SchemaError: A key that is missing or undeclared, values of another kind, number or length.
    """
    try:
        # Views of the record: no value is copied here.
        stored = _features(memoryview(record))
        undeclared = [key for key in stored if not _is_declared(key, keys)]
        if _STEPS_VALUE in undeclared:
            raise _nested_steps(where)
        if undeclared:
            raise mismatch(where, "only keys of features.json", ", ".join(sorted(undeclared)))
        taken = [
            spec
            for key, spec in keys.items()
            # Without a list, all that can be read; "other" kinds have no type that the format
            # knows.
            if (spec.kind != "other" if wanted is None else key in wanted)
        ]
        episode = {spec.key: _read_value(stored, spec, where) for spec in taken}
    except (DecodeError, IndexError, UnicodeDecodeError) as error:
        # `IndexError` comes from a varint that runs past the end.
        raise DataError(
            where=where,
            expected="a serialized tf.train.Example",
            found=f"{len(record)} bytes: {error}",
            remedy="Convert from a directory that tensorflow-datasets wrote.",
        ) from error
    # After parsing: only then the number of steps of every key is known.
    _check_lengths(episode, where)
    return episode


def _nested_steps(where: str) -> SchemaError:
    return SchemaError(
        where=f"{where}, {_STEPS_VALUE}",
        expected=f"a list for every key of a step, such as {STEPS}action",
        found="the steps as one value, such as serialized Examples inside bytes",
        remedy="Write the source with tensorflow-datasets, which stores the keys of the steps.",
    )


def _is_declared(key: str, keys: Mapping[str, SourceKey]) -> bool:
    """Whether a stored key is a declared one, or a part of one such as its row lengths."""
    if key in keys:
        return True
    # What is inside these keys is stored under names that features.json does not list.
    whole = {spec.stored for spec in keys.values() if spec.kind == "other" or spec.lengths}
    # "a/b/c" gives "a", "a/b", "a/b/c".
    parents = itertools.accumulate(key.split("/"), lambda parent, name: f"{parent}/{name}")
    return any(parent in whole for parent in parents)


def _check_lengths(episode: Episode, where: str) -> None:
    """Every key must have a value for each of the same steps, and others one in all."""
    for key, value in episode.items():
        if not key.startswith(STEPS) and len(value) != 1:
            raise mismatch(f"{where}, {key}", "one value per episode", str(len(value)))
    lengths = {key: len(value) for key, value in episode.items() if key.startswith(STEPS)}
    if not any(lengths.values()):
        raise SchemaError(
            where=where,
            expected="an episode of at least one step",
            found="one without steps",
            remedy="Write the source without it.",
        )
    if len(set(lengths.values())) != 1:
        raise mismatch(where, "the same number of steps for every key", str(lengths))


def _read_value(
    stored: Mapping[str, memoryview], spec: SourceKey, where: str
) -> np.ndarray | list[Blob]:
    where = f"{where}, {spec.key}"
    name = spec.stored
    if spec.lengths and f"{name}/{_FLAT_VALUES}" in stored:
        _check_row_lengths(stored, spec, where)
        name = f"{name}/{_FLAT_VALUES}"
    if name not in stored:
        raise mismatch(where, f"{spec.dtype}{list(spec.shape)}", "no such key")
    kind, values = _list(stored[name])
    expected = _stored_kind(spec)
    if not len(values):  # an empty list may be of any kind, or of none
        kind, values = expected, [] if expected == "bytes_list" else np.empty(0, np.float32)
    if kind != expected:
        raise mismatch(where, expected, str(kind))
    if isinstance(values, list):
        return _view(values, spec, where)
    size = math.prod(spec.shape)
    # A zero-sized shape says nothing of the number of steps.
    if size == 0 or values.size % size:
        raise mismatch(where, f"a multiple of {size} values", f"{values.size}")
    # (t, *shape)
    return _as_declared(values, spec.dtype, where).reshape(-1, *spec.shape)


def _check_row_lengths(stored: Mapping[str, memoryview], spec: SourceKey, where: str) -> None:
    """Checks that the sequences of a record have their declared lengths.

    What is inside more than one sequence is stored flat, beside the lengths of each level but the
    outermost; `steps` is a level.
    """
    # `steps` is the outermost level and has no lengths; other keys start one level below.
    inner = spec.lengths if spec.key.startswith(STEPS) else spec.lengths[1:]
    for level, length in enumerate(inner):
        rows = stored.get(f"{spec.stored}/ragged_row_lengths_{level}", memoryview(b""))
        _, found = _list(rows)
        wrong = [row for row in found if row != length]
        if wrong:
            raise mismatch(where, f"sequences of {length}", f"one of {wrong[0]}")


def _view(values: list[Blob], spec: SourceKey, where: str) -> list[Blob]:
    """The texts or images of a key; of a sequence of images, those of its view."""
    if spec.view is None:
        return values
    num_views = math.prod(spec.lengths)
    if len(values) % num_views:
        raise mismatch(where, f"a multiple of {num_views} images", f"{len(values)}")
    # Views of a sequence of cameras alternate: view 0 of step 0, view 1 of step 0, ...
    return values[spec.view :: num_views]


def _stored_kind(spec: SourceKey) -> str:
    if spec.kind != "tensor":
        return "bytes_list"
    # TensorFlow stores every float as float32 and every integer as int64.
    return "float_list" if spec.dtype in _FLOATS else "int64_list"


def _as_declared(flat: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """The values of a list in their declared dtype; a uint64 is stored as an int64 of its bits.

    A float16 that overflows becomes infinite, which the dtype law refuses.
    """
    # NumPy warns on overflow, and warnings are errors in tests.
    with np.errstate(over="ignore"):
        values = flat.astype(dtype, copy=False)
    # A round trip shows values outside the declared type; a uint64 survives it by its bits.
    if flat.dtype == np.int64 and (changed := values.astype(np.int64) != flat).any():
        raise mismatch(where, f"{dtype} values", f"values such as {flat[changed][0]}")
    return values


def mismatch(where: str, expected: str, found: str) -> SchemaError:
    """The error for records and declarations that differ."""
    return SchemaError(
        where=where,
        expected=expected,
        found=found,
        remedy="The records must be what features.json declares: write the source again.",
    )


# --- protobuf's encoding


def _features(record: memoryview) -> dict[str, memoryview]:
    """The serialized `Feature` of every key of a serialized `Example`."""
    features: dict[str, memoryview] = {}
    for _, message in _fields(record, 1):
        for _, entry in _fields(message, 1):
            parts = dict(_fields(entry, 2))
            # A message without a value field has the default, an empty Feature.
            features[bytes(parts.get(1, b"")).decode()] = parts.get(2, memoryview(b""))
    return features


def _list(feature: memoryview) -> tuple[str | None, np.ndarray | list[Blob]]:
    """(kind, values) of a serialized `Feature`: float32 or int64 (n), or n byte strings."""
    kind = None
    content = memoryview(b"")
    # protobuf keeps the last one where a oneof is written twice.
    for number, field in _fields(feature, len(_KINDS)):
        kind, content = _KINDS[number], field
    if kind == "bytes_list":
        return kind, [value for _, value in _fields(content, 1)]
    if kind == "float_list":
        return kind, _floats(content)
    # protobuf parses the integers: few values, of varying length.
    return kind, np.array(tf_feature.Int64List.FromString(bytes(content)).value, np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def _floats(content: memoryview) -> np.ndarray:
    """float32 (n) of a serialized `FloatList`, a view where it is one packed field."""
    # Field 1, length-delimited: packed. protobuf also allows one field per value.
    if content and content[0] == 1 << 3 | _BYTES:
        length, start = _varint(content, 1)
        if start + length == len(content) and length % 4 == 0:
            # No copy: `content` is a view of the record, and this is a view of `content`.
            return np.frombuffer(content, "<f4", length // 4, start)
    values = tf_feature.FloatList.FromString(bytes(content)).value  # pyright: ignore[reportAttributeAccessIssue]
    return np.array(values, np.float32)


def _fields(message: memoryview, last: int) -> Iterator[tuple[int, memoryview]]:
    """Yields (number, content) of the length-delimited fields of a message, in order.

    Args:
      message: The serialized message.
      last: The highest number of a field that it may have.

    Raises:
      DecodeError: Where a field ends beyond the message, has another number, or is of another
        wire type: a `tf.train.Example` has no such field above its lists of numbers.
    """
    position = 0
    end = len(message)
    while position < end:
        tag = message[position]  # below 16 fields, one byte
        # 7 bits of tag hold field numbers below 16; the messages read here have at most 3.
        if tag & 7 != _BYTES or tag > 0x7F:
            raise DecodeError(f"a field of wire type {tag & 7} at byte {position}")
        if not 1 <= tag >> 3 <= last:
            raise DecodeError(f"a field {tag >> 3} at byte {position}")
        length, start = _varint(message, position + 1)
        position = start + length
        if position > end:
            raise DecodeError(f"a field of {length} bytes at byte {start} of {end}")
        yield tag >> 3, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(value, position after it) of a varint.

    Raises:
      IndexError: Where the message ends inside it.
      DecodeError: Where it is longer than protobuf's are.
    """
    value = 0
    for index in range(_VARINT_BYTES):
        byte = message[position + index]
        # Seven bits per byte, the lowest first.
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise DecodeError(f"a number of more than {_VARINT_BYTES} bytes at byte {position}")
