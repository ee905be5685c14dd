"""Messages with arrays as msgpack: the wire formats of openpi's clients and of vla-eval.

    array    {"__ndarray__": True, "data": bytes, "dtype": str, "shape": [int]}   C order
    scalar   {"__npgeneric__": True, "data": value, "dtype": str}

openpi writes these keys as bytes, vla-eval as text. Everything else is plain msgpack; text is
UTF-8. There is no pickle, and the only dtypes are numbers and booleans.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from pipeline.errors import UserError
from pipeline.terminal import escaped

MAX_MESSAGE_BYTES = 1 << 26
"""Largest message, 64 MiB; a message with two images of 1920x1080 has 12.4 MB."""

# Booleans, integers and floats: object arrays would need pickle.
_KINDS = "biuf"
# Exact names only: `np.dtype` evaluates structured and comma-separated strings.
_DTYPE = re.compile(r"[<>=|]?[biuf]\d{1,2}|bool|(u?int|float)\d{1,2}")
# NumPy's own limit was 32 axes before version 2.
_MAX_DIMS = 32
# Larger sizes do not fit into NumPy's int64.
_MAX_SIZE = 1 << 62
# Each value is a Python object of tens of bytes, so 64 MiB could become several GB.
_MAX_ITEMS = 1_000_000
# What msgpack raises depends on where the bytes are wrong.
_UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


class Codec:
    """Packs and unpacks the messages of one wire format.

    Args:
      key: Makes the keys of an array's map from text: `str.encode` or `str`.
      remedy: What sends such messages, for errors.
      decode_map: Returns what another map stands for, such as an encoded image; it may raise a
        `ValueError` or a `TypeError`.
    """

    def __init__(
        self,
        key: Callable[[str], Any],
        remedy: str,
        decode_map: Callable[[dict[Any, Any]], Any] = lambda values: values,
    ) -> None:
        self._remedy = remedy
        self._decode_map = decode_map
        self._array, self._scalar = key("__ndarray__"), key("__npgeneric__")
        self._data, self._dtype, self._shape = key("data"), key("dtype"), key("shape")

    def pack(self, message: Any) -> bytes:
        """Packs a message of dictionaries, lists, text, numbers and arrays to bytes."""
        return msgpack.Packer(default=self._encode).pack(message)

    def unpack(self, data: bytes) -> Any:
        """Unpacks a message, the inverse of `pack`; arrays are read-only views of `data`.

        Raises:
          UserError: The bytes are not such a message, or it has more than a million values outside
            arrays, whose memory would be many times its size.
        """
        decoder = _Decoder(self._decode)
        try:
            return msgpack.unpackb(
                data,
                object_hook=decoder.map,
                list_hook=decoder.list,
                max_array_len=_MAX_ITEMS,
                max_map_len=_MAX_ITEMS,
            )
        except _UNREADABLE as error:
            raise UserError(
                where="message",
                expected="msgpack, with arrays as maps of __ndarray__, data, dtype and shape",
                found=f"{type(error).__name__}: {escaped(str(error))[:200]}",
                remedy=self._remedy,
            ) from error

    def _encode(self, value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
            # `str` has the byte order, which a client of another machine needs.
            dtype = {self._dtype: value.dtype.str}
            if isinstance(value, np.generic):
                return {self._scalar: True, self._data: value.item(), **dtype}
            shape = list(value.shape)
            return {self._array: True, self._data: value.tobytes(), **dtype, self._shape: shape}
        raise TypeError(f"{type(value).__name__} cannot be sent")

    def _decode(self, values: dict[Any, Any]) -> Any:
        data, dtype = values.get(self._data), values.get(self._dtype)
        if self._array in values:
            return to_array(data, dtype, values.get(self._shape))
        if self._scalar in values:
            return _to_scalar(data, dtype)
        return self._decode_map(values)


class _Decoder:
    """Decodes the maps and lists of one message, and counts their values."""

    def __init__(self, decode: Callable[[dict[Any, Any]], Any]) -> None:
        self._decode = decode
        self._num_left = _MAX_ITEMS

    def list(self, values: list[Any]) -> list[Any]:
        self._count(len(values))
        return values

    def map(self, values: dict[Any, Any]) -> Any:
        self._count(len(values))
        return self._decode(values)

    def _count(self, number: int) -> None:
        # The container counts too: empty lists inside lists would be free otherwise.
        self._num_left -= 1 + number
        if self._num_left < 0:
            raise ValueError(f"more than {_MAX_ITEMS} values outside arrays")


def to_array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """Returns the array of a map's values, a read-only view of `data`.

    Raises:
      TypeError: One of them is of another type than bytes, text and a list of integers.
      ValueError: They do not fit together.
    """
    kind = _to_dtype(dtype)
    if not isinstance(data, bytes):
        raise TypeError(f"data of an array is a {type(data).__name__}, not bytes")
    sizes = checked_shape(shape)
    # Python's `prod` does not overflow.
    if math.prod(sizes) * kind.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array {kind}{sizes}")
    # A view: an image of 6 MB is not copied.
    return np.frombuffer(data, kind).reshape(sizes)


def checked_shape(shape: Any) -> list[int]:
    """Returns the shape of a map's values.

    Raises:
      TypeError: It is no list of integers.
      ValueError: NumPy cannot hold such an array.
    """
    # `type(...) is int`, because True is an int as well.
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise TypeError("shape of an array is not a list of integers")
    if len(shape) > _MAX_DIMS or not all(0 <= size < _MAX_SIZE for size in shape):
        raise ValueError(f"shape of an array has more than {_MAX_DIMS} sizes, or one out of range")
    return shape


def _to_scalar(data: Any, dtype: Any) -> np.generic:
    kind = _to_dtype(dtype)
    if not isinstance(data, bool | int | float):
        raise TypeError(f"data of a scalar is a {type(data).__name__}, not a number")
    # A float16 that overflows becomes infinite, and is refused by its value later.
    with np.errstate(over="ignore"):
        return kind.type(data)


def _to_dtype(name: Any) -> np.dtype:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise TypeError(f"dtype {ascii(name)[:60]}: only numbers and booleans are supported")
    return np.dtype(name)
