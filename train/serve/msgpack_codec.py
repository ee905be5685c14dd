"""Encodes messages with arrays as msgpack: the wire format of openpi's clients.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": str, b"shape": [int]}   C order
    scalar   {b"__npgeneric__": True, b"data": value, b"dtype": str}

Everything else is plain msgpack; text is UTF-8. There is no pickle, and the only dtypes are numbers
and booleans.
"""

import math
import re
from typing import Any

import msgpack
import numpy as np

from pipeline.errors import UserError
from pipeline.terminal import escaped

MAX_MESSAGE_BYTES = 1 << 26
"""Largest message, 64 MiB; a message with two images of 1920x1080 has 12.4 MB."""

_ARRAY = b"__ndarray__"
_SCALAR = b"__npgeneric__"
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


def pack(message: Any) -> bytes:
    """Packs a message of dictionaries, lists, text, numbers and arrays to bytes."""
    return msgpack.Packer(default=_encode).pack(message)


def unpack(data: bytes) -> Any:
    """Unpacks a message, the inverse of `pack`; arrays are read-only views of `data`.

    Raises:
      UserError: The bytes are not such a message, or it has more than a million values outside
        arrays, whose memory would be many times its size.
    """
    decoder = _Decoder()
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
            remedy="Send it with openpi's client, or see docs/acting.md for the format.",
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        if isinstance(value, np.generic):
            # `str` has the byte order, which a client of another machine needs.
            return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
        shape = list(value.shape)
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


class _Decoder:
    """Decodes the maps and lists of one message, and counts their values."""

    def __init__(self) -> None:
        self._num_left = _MAX_ITEMS

    def list(self, values: list[Any]) -> list[Any]:
        self._count(len(values))
        return values

    def map(self, values: dict[Any, Any]) -> Any:
        self._count(len(values))
        if _ARRAY in values:
            return _array(values)
        if _SCALAR in values:
            return _scalar(values)
        return values

    def _count(self, number: int) -> None:
        # The container counts too: empty lists inside lists would be free otherwise.
        self._num_left -= 1 + number
        if self._num_left < 0:
            raise ValueError(f"more than {_MAX_ITEMS} values outside arrays")


def _array(values: dict[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(values), values.get(b"shape"), values.get(b"data")
    if not isinstance(data, bytes):
        raise TypeError(f"data of an array is a {type(data).__name__}, not bytes")
    # `type(...) is int`, because True is an int as well.
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise TypeError("shape of an array is not a list of integers")
    if len(shape) > _MAX_DIMS or not all(0 <= size < _MAX_SIZE for size in shape):
        raise ValueError(f"shape of an array has more than {_MAX_DIMS} sizes, or one out of range")
    # Python's `prod` does not overflow.
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array {dtype}{shape}")
    # A view: an image of 6 MB is not copied.
    return np.frombuffer(data, dtype).reshape(shape)


def _scalar(values: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(values), values.get(b"data")
    if not isinstance(data, bool | int | float):
        raise TypeError(f"data of a scalar is a {type(data).__name__}, not a number")
    # A float16 that overflows becomes infinite, and is refused by its value later.
    with np.errstate(over="ignore"):
        return dtype.type(data)


def _dtype(values: dict[Any, Any]) -> np.dtype:
    name = values.get(b"dtype")
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise TypeError(f"dtype {ascii(name)[:60]}: only numbers and booleans are supported")
    return np.dtype(name)
