"""Messages that a client should not send, drawn from a seed."""

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

DTYPES = (
    *("(1,u1", "(2,)u1", "|O", "O", "u1,f4", "V8", "S3", "<U4", "M8[s]", "c8", "f", "<f3", "<f99"),
    *("", "\x1b[31m", "u1\nu1", "float33", "int", "void", "[('a','u1')]", "{'names':['a']}"),
    *("<f2", "<f4", "<f8", "|b1", "<i8", "float16"),
)
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, -(2**63), 2**64 - 1, 1e300, float("nan"), float("inf")),
    *("", "text", "\x1b]0;x\x07", "\u202e", "x" * 5000, b"", b"\x00" * 8, [], {}, [[1], [2, 3]]),
    *([[1.0, None]], [0.0] * 8, ["0"] * 8, [[0.0] * 8], {"a": {"b": []}}, msgpack.ExtType(5, b"x")),
    *(msgpack.Timestamp(1), [True, [False]], {b"__ndarray__": True}, {b"__npgeneric__": True}),
    {b"__ndarray__": True, b"data": b"\x01\x00", b"dtype": "|b1", b"shape": [2]},
    {b"__npgeneric__": True, b"data": [1, 2], b"dtype": "<f4"},
    {b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"},
    {b"__npgeneric__": True, b"data": 1e300, b"dtype": "<f4"},
)
SIZES = (-1, 0, 1, 3, 127, 2**31, 2**40, 2**62, 2**63 - 1, 2.0, True, None, "3", [3])


def nested(depth: int) -> list[Any]:
    """Returns a deeply nested list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def of_bytes(rng: np.random.Generator, message: bytes, images: list[slice]) -> bytes:
    """A message with bytes that are changed, lost, repeated or new; three of four outside images.

    Args:
      rng: Draws them.
      message: The message as sent.
      images: Where the bytes of images lie.
    """
    outside = np.ones(len(message), bool)
    for pixels in images:
        outside[pixels] = rng.random() < 0.25
    places = np.flatnonzero(outside)
    data = bytearray(message)
    for place in sorted(rng.choice(places, rng.integers(1, 5)), reverse=True):
        length = int(rng.integers(1, 9))
        new = rng.bytes(length)
        match rng.integers(5):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place : place + length] = new
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = new
            case 4:
                data[place:place] = data[place : place + 64]
    if rng.random() < 0.1:
        del data[int(rng.integers(len(data))) :]
    return bytes(data)


def of_values(
    rng: np.random.Generator, message: dict[str, Any], wrap: Callable[[Any], Any]
) -> bytes:
    """A message that decodes, whose types, dtypes, shapes, keys, nesting or sizes are changed.

    Args:
      rng: Draws them.
      message: With arrays as the maps that openpi's clients send.
      wrap: Makes a message of the protocol of it.
    """
    values = {key: dict(v) if isinstance(v, dict) else v for key, v in message.items()}
    for _ in range(rng.integers(1, 3)):
        _change(rng, values)
    whole: Any = values
    match rng.integers(20):
        case 0:
            whole = [values]
        case 1:
            whole = _any(rng, JUNK)
        case 2:
            whole = {b"__ndarray__": values}
    return msgpack.packb(wrap(whole), use_bin_type=bool(rng.random() < 0.95))


def _change(rng: np.random.Generator, values: dict[Any, Any]) -> None:
    key = _any(rng, [*values, "reset"])
    array = values.get(key)
    what = rng.integers(8)
    if what < 5 and isinstance(array, dict) and b"shape" in array:
        _change_array(rng, array)
    elif what == 5:
        values.pop(key, None)
    elif what == 6:
        values[_any(rng, ["observation", "", "état", b"x", "prompt\x00"])] = values.get(key)
    else:
        values[key] = _any(rng, [*JUNK, nested(100), nested(1000), {"data": values.get(key)}])


def _change_array(rng: np.random.Generator, array: dict[Any, Any]) -> None:
    shape = list(array[b"shape"]) if isinstance(array[b"shape"], list | tuple) else [1]
    match rng.integers(7):
        case 0 | 1:
            array[b"dtype"] = _any(rng, [*DTYPES, *JUNK])
        case 2:
            shape[int(rng.integers(len(shape)))] = _any(rng, SIZES)
            array[b"shape"] = shape
        case 3:
            array[b"shape"] = _any(rng, [shape[::-1], [*shape, 1], [1, *shape], shape * 20, *JUNK])
        case 4:
            data = array.get(b"data")
            data = data if isinstance(data, bytes) else b"\0" * 8
            texts = ["x" * len(data), list(data[:50]), data[:-1], data + b"\0", data.hex()]
            array[b"data"] = _any(rng, [*texts, *JUNK])
        case 5:
            array.pop(_any(rng, list(array)))
            array.setdefault(b"shape", None)
        case 6:
            array[b"data"] = dict(array)


def _any(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def drawn(
    seed: int, number: int, message: dict[str, Any], wrap: Callable[[Any], Any]
) -> Iterator[bytes]:
    """`number` messages of changed bytes, then `number` of changed values; see `of_values`."""
    rng = np.random.default_rng(seed)
    whole = msgpack.packb(wrap(message))
    images = []
    for value in message.values():
        if isinstance(value, dict) and len(value[b"data"]) > 1000:
            begin = whole.index(value[b"data"])
            images.append(slice(begin, begin + len(value[b"data"])))
    for _ in range(number):
        yield of_bytes(rng, whole, images)
    for _ in range(number):
        yield of_values(rng, message, wrap)
