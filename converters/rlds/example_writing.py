"""An episode as the bytes of a serialized `tf.train.Example`."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from tensorflow_datasets.proto import tf_feature_generated_pb2 as tf_feature

from pipeline.data.schema import Blob

_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
"""Numbers of the fields of a `Feature`."""
_WIRE_TYPE = 2
"""Wire type of every field here: a field begins with its length."""


def serialize_episode(values: Mapping[str, np.ndarray | Sequence[Blob]]) -> bytes:
    """The serialized `tf.train.Example`, its keys in the order of their names.

    Args:
      values: By source key: a tensor (t, *shape), of integers or bools, or of floats that float32
        holds; or t encoded images or UTF-8 texts.
    """
    entries: list[Blob] = []
    # Sorted, so that equal episodes have equal bytes.
    for key in sorted(values):
        name = key.encode()
        entries += _field(1, [*_field(1, [name]), *_field(2, _feature(values[key]))])
    return b"".join(_field(1, entries))


def _feature(value: np.ndarray | Sequence[Blob]) -> list[Blob]:
    """The parts of a serialized `Feature`."""
    if not isinstance(value, np.ndarray):
        # One field per blob.
        parts = [part for blob in value for part in _field(1, [blob])]
        return _field(_BYTES_LIST, parts)
    if value.dtype.kind in "iub":
        flat = value.astype(np.int64).ravel().tolist()
        message = tf_feature.Int64List(value=flat)  # pyright: ignore[reportAttributeAccessIssue]
        return _field(_INT64_LIST, [message.SerializeToString()])
    # Little-endian float32: protobuf's bytes, without a call per value.
    floats = np.ascontiguousarray(value, "<f4").reshape(-1)
    return _field(_FLOAT_LIST, _field(1, [floats.view(np.uint8).data]))


def _field(number: int, parts: Sequence[Blob]) -> list[Blob]:
    """The parts of a length-delimited field with that content."""
    # Parts are joined once, at the end, when all lengths are known.
    header = _varint(number << 3 | _WIRE_TYPE) + _varint(sum(map(len, parts)))
    return [header, *parts]


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        # Seven bits per byte; the highest bit says that more follow.
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, value)
