"""Encodes and decodes records: a header, tensors at fixed aligned offsets, then blobs.

    offset 0   magic            4 bytes  "OGR1"
           4   layout tag       uint32   CRC32C of the column's layout: another column's record
                                         is rejected
           8   shard            uint32   number of its shard, and
          12   index            uint32   index in it: a record from elsewhere is rejected
          16   num_steps        uint32   steps of the episode; 1 in a step column
          20   num_blobs        uint32
          24   blob lengths     uint32 each
               padding to 16, then each tensor, padded to 16, then the blobs back to back

All numbers are little-endian, like every host that JAX runs on. A tensor of an episode column has a
leading time axis of `num_steps`. Blobs are encoded images, texts in UTF-8, and tokens in the layout
of `pipeline.data.int8_codec`.
"""

import dataclasses
import functools
import json
import math
import struct
from collections.abc import Mapping

import google_crc32c
import numpy as np

from pipeline.data.schema import Blob, Column, Feature
from pipeline.errors import DataError

_MAGIC = b"OGR1"
# magic, tag, shard, index, num_steps, num_blobs; "<" means little-endian without gaps.
_HEADER = struct.Struct("<4sIIIII")
_ALIGNMENT = 16

Values = dict[str, np.ndarray | bytes]
Place = tuple[int, int]
"""Number of a shard, and a record's index in it."""


@dataclasses.dataclass(frozen=True)
class RecordLayout:
    """Encodes and decodes the records of one column."""

    column: Column
    """The features, in the order of their bytes."""

    @functools.cached_property
    def tag(self) -> int:
        """CRC32C over the names, types and shapes of the features, as JSON."""
        # Keys, not sources: renaming a key at the source changes no stored byte.
        features = [[f.key, f.kind, f.dtype, f.shape] for f in self.column.features]
        # Separators are fixed, because the tag is a checksum of this text.
        text = json.dumps([self.column.per, features], separators=(",", ":"))
        return google_crc32c.value(text.encode())

    @functools.cached_property
    def tensors(self) -> tuple[Feature, ...]:
        """The features that are stored at fixed offsets."""
        return tuple(f for f in self.column.features if f.kind == "tensor")

    @functools.cached_property
    def blobs(self) -> tuple[Feature, ...]:
        """The features of variable length: images, depth, texts and quantized tokens."""
        return tuple(f for f in self.column.features if f.kind != "tensor")

    def encode(
        self, place: Place, num_steps: int, values: Mapping[str, np.ndarray | Blob]
    ) -> bytes:
        """Encodes one record.

        Args:
          place: Number of its shard, and its index in it.
          num_steps: Leading axis of an episode's tensors; 1 in a step column.
          values: By feature key: arrays of the dtype and shape at rest, bytes for images and texts.

        Raises:
          ValueError: An array has another dtype or shape; nothing is cast here.
        """
        tensors: list[Blob] = []
        blobs: list[Blob] = []
        for feature in self.column.features:
            value = values[feature.key]
            if isinstance(value, np.ndarray):
                data = _bytes_of(self._checked(feature, num_steps, value))
                # Each tensor ends aligned, so the next one begins aligned.
                tensors += [data, bytes(_padding(len(data)))]
            else:
                blobs.append(value)
        lengths = map(len, blobs)
        header = self._header.pack(_MAGIC, self.tag, *place, num_steps, len(blobs), *lengths)
        # One join copies each byte once; repeated `+` would copy the first ones again and again.
        return b"".join([header, *tensors, *blobs])

    @functools.cached_property
    def _header(self) -> struct.Struct:
        """The format of the header with blob lengths and padding."""
        num_blobs = len(self.blobs)
        padding = _padding(_HEADER.size + 4 * num_blobs)
        # "x" pads with zero bytes.
        return struct.Struct(f"{_HEADER.format}{num_blobs}I{padding}x")

    def decode(
        self, record: bytes, place: Place, where: str, num_steps: int | None = None
    ) -> Values:
        """Inverts `encode`, without a copy: tensors are read-only views of `record`.

        Args:
          record: The stored bytes.
          place: Number of the shard that it was read from, and its index there.
          where: Dataset, shard and record, for the error.
          num_steps: Steps of the episode; None: any number.

        Returns:
          By feature key: tensors (*shape), in an episode column (t, *shape); bytes for blobs.

        Raises:
          DataError: The bytes are no record of this column and place, or their length or the number
            of steps is wrong.
        """
        # First, because sizes of another layout would be read as nonsense.
        found_steps, lengths = self._read_header(record, place, where)
        if num_steps is not None and found_steps != num_steps:
            raise _foreign(where, f"an episode of {num_steps} steps", f"one of {found_steps}")
        offset = _aligned(_HEADER.size + 4 * len(lengths))
        values: Values = {}
        for feature in self.tensors:
            shape = self._shape(feature, found_steps)
            count = math.prod(shape)
            end = offset + count * feature.numpy_dtype.itemsize
            # `frombuffer` would raise too, without the file and record.
            if end > len(record):
                raise _corrupt(where, f"{end} bytes or more", f"{len(record)} bytes")
            flat = np.frombuffer(record, feature.numpy_dtype, count, offset)
            values[feature.key] = flat.reshape(shape)
            offset = _aligned(end)
        # Exactly, not at least: bytes left over are as wrong as missing ones.
        if offset + sum(lengths) != len(record):
            raise _corrupt(where, f"{offset + sum(lengths)} bytes", f"{len(record)} bytes")
        for feature, length in zip(self.blobs, lengths, strict=True):
            # A slice of bytes is a copy, unlike the tensors above.
            values[feature.key] = record[offset : offset + length]
            offset += length
        return values

    def _shape(self, feature: Feature, num_steps: int) -> tuple[int, ...]:
        return (num_steps, *feature.shape) if self.column.per == "episode" else feature.shape

    def _checked(self, feature: Feature, num_steps: int, array: np.ndarray) -> np.ndarray:
        shape = self._shape(feature, num_steps)
        if array.dtype != feature.numpy_dtype or array.shape != shape:
            raise ValueError(
                f"{feature.key} must be {feature.dtype}{list(shape)}, "
                f"not {array.dtype}{list(array.shape)}"
            )
        return array

    def _read_header(self, record: bytes, place: Place, where: str) -> tuple[int, tuple[int, ...]]:
        """Checks that a record belongs to this column and place; (num_steps, blob lengths)."""
        # Before unpacking, which would raise without a place.
        if len(record) < _HEADER.size + 4 * len(self.blobs):
            raise _corrupt(where, "a record header", f"{len(record)} bytes")
        magic, tag, *stored, num_steps, num_blobs = _HEADER.unpack_from(record)
        if magic != _MAGIC:
            raise _corrupt(where, f"a record that starts with {_MAGIC!r}", repr(magic))
        if tag != self.tag or num_blobs != len(self.blobs):
            expected = f"layout {self.tag:08x}"
            raise _foreign(where, expected, f"layout {tag:08x} of other features")
        # A shard swapped with one of the same size passes ArrayRecord's checks.
        if tuple(stored) != place:
            expected, found = (f"record {i} of shard {s}" for s, i in (place, stored))
            raise _foreign(where, expected, f"{found}, out of its place")
        return num_steps, struct.unpack_from(f"<{num_blobs}I", record, _HEADER.size)


def _bytes_of(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array, without a copy if it is contiguous."""
    # `reshape` first: a 0-d array cannot be viewed as another dtype.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _corrupt(where: str, expected: str, found: str) -> DataError:
    return DataError(
        where=where,
        expected=expected,
        found=found,
        remedy="The shard is corrupt or of another dataset: convert this dataset again.",
    )


def _foreign(where: str, expected: str, found: str) -> DataError:
    """Makes the error for an intact record that belongs elsewhere."""
    return DataError(
        where=where,
        expected=expected,
        found=found,
        remedy="Another shard has this name: put the right one back, or convert the dataset again.",
    )


def _padding(size: int) -> int:
    return -size % _ALIGNMENT


def _aligned(size: int) -> int:
    return size + _padding(size)
