"""Messages with arrays as msgpack: the wire format of openpi's clients.

    array    {b"__ndarray__": True, b"data": bytes, b"dtype": str, b"shape": [int]}   C order
    scalar   {b"__npgeneric__": True, b"data": value, b"dtype": str}

All else is plain msgpack; text is UTF-8. No pickle, and no dtype but numbers and booleans.
"""

import math
from typing import Any

import msgpack
import numpy as np

from pipeline.errors import UserError

_ARRAY = b"__ndarray__"
_SCALAR = b"__npgeneric__"
_KINDS = "biuf"
_UNREADABLE = (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException)


def pack(message: Any) -> bytes:
    """A message of dictionaries, lists, text, numbers and arrays as bytes."""
    return msgpack.Packer(default=_encode).pack(message)


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; arrays are read-only views of `data`.

    Raises:
      UserError: Bytes that are no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_decode)
    except _UNREADABLE as error:
        raise UserError(
            where="message",
            expected="msgpack, with arrays as maps of __ndarray__, data, dtype and shape",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            remedy="Send it with openpi's client, or as docs/serving.md says.",
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        if isinstance(value, np.generic):
            return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
        shape = list(value.shape)
        return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _decode(value: dict[Any, Any]) -> Any:
    if _ARRAY in value:
        dtype, shape, data = _dtype(value[b"dtype"]), tuple(value[b"shape"]), value[b"data"]
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for an array {dtype}{list(shape)}")
        return np.frombuffer(data, dtype).reshape(shape)
    if _SCALAR in value:
        return _dtype(value[b"dtype"]).type(value[b"data"])
    return value


def _dtype(name: Any) -> np.dtype:
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS:
        raise TypeError(f"dtype {name}: only numbers and booleans are read")
    return dtype
