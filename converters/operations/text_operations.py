"""Operations between bytes, texts and numbers."""

import dataclasses
import re
import zlib
from collections.abc import Iterable
from typing import Literal

import numpy as np

from converters.operations.value_type import Others, Simple, ValueType

_TEXT = ValueType("text", "utf8", ())
_INTEGERS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@dataclasses.dataclass(frozen=True)
class Unzip(Simple):
    """Reads numbers from byte strings: zlib, then little-endian values one after the other."""

    shape: tuple[int, ...]
    """Shape of one value."""
    dtype: Literal["float32", "float64", "int32", "uint8"] = "float32"
    """Dtype of the values."""
    op: Literal["unzip"] = "unzip"

    def output(self, given: ValueType) -> ValueType:
        """A tensor of the shape and dtype."""
        if given.kind != "text":
            raise ValueError(f"it takes byte strings, not {given}")
        return ValueType("tensor", self.dtype, self.shape)

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The numbers."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        unzipped = np.zeros((len(values), *self.shape), self.dtype)
        for t, packed in enumerate(values):
            try:
                numbers = np.frombuffer(zlib.decompress(packed), dtype)
            except (zlib.error, ValueError) as error:
                raise ValueError(f"bytes that zlib cannot read: {error}") from error
            if numbers.size != unzipped[t, ...].size:
                raise ValueError(f"it has {numbers.size} values, not {list(self.shape)}")
            unzipped[t] = numbers.reshape(self.shape)
        return unzipped


@dataclasses.dataclass(frozen=True)
class CodePoints(Simple):
    """Makes a text of a row of Unicode code points, up to the first zero."""

    op: Literal["code_points"] = "code_points"

    def output(self, given: ValueType) -> ValueType:
        """A text."""
        if given.kind != "tensor" or given.dtype not in _INTEGERS or len(given.shape) != 1:
            raise ValueError(f"it takes vectors of integers, not {given}")
        return _TEXT

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The texts."""
        return _texts(self._text(row.tolist()) for row in values)

    def _text(self, codes: list[int]) -> str:
        length = codes.index(0) if 0 in codes else len(codes)
        try:
            text = "".join(map(chr, codes[:length]))
            # A surrogate is a code point and yet no character.
            text.encode()
        except (ValueError, OverflowError) as error:
            raise ValueError(f"numbers that are no code points: {error}") from error
        return text


@dataclasses.dataclass(frozen=True)
class TextOfCode(Simple):
    """Looks up the text of an integer code."""

    texts: tuple[str, ...]
    """The texts; a code is an index among them, from 0."""
    op: Literal["text_of_code"] = "text_of_code"

    def output(self, given: ValueType) -> ValueType:
        """A text."""
        is_number = given.kind == "tensor" and given.dtype in (*_INTEGERS, "bool")
        if not is_number or given.shape not in ((), (1,)):
            raise ValueError(f"it takes one integer, not {given}")
        return _TEXT

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The texts."""
        codes = values.reshape(len(values)).astype(np.int64)
        wrong = (codes < 0) | (codes >= len(self.texts))
        if wrong.any():
            raise ValueError(f"the code {codes[wrong][0]} is none of 0 to {len(self.texts) - 1}")
        return _texts(self.texts[code] for code in codes)


@dataclasses.dataclass(frozen=True)
class Substitute(Simple):
    """Replaces what a regular expression matches: a file name becomes an instruction."""

    pattern: str
    """Python's syntax; all matches are replaced."""
    replacement: str = ""
    r"""What stands there instead; `\1` is the first group."""
    op: Literal["substitute"] = "substitute"

    def __post_init__(self) -> None:
        """Checks the pattern, and the groups of the replacement."""
        try:
            re.compile(self.pattern)
            re.sub(f"(?:{self.pattern})|^", self.replacement, "")
        except (re.error, IndexError) as error:
            raise ValueError(f"pattern {self.pattern!r}, {self.replacement!r}: {error}") from error

    def output(self, given: ValueType) -> ValueType:
        """A text."""
        if given.kind != "text":
            raise ValueError(f"it takes a text, not {given}")
        return _TEXT

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The texts."""
        try:
            decoded = [bytes(value).decode() for value in values]
        except UnicodeDecodeError as error:
            raise ValueError(f"bytes that are no text in UTF-8: {error}") from error
        return _texts(re.sub(self.pattern, self.replacement, text) for text in decoded)


@dataclasses.dataclass(frozen=True)
class EpisodeText(Simple):
    """Makes one text of the episode of a text that all of its steps have.

    A feature of it is stored once per episode and is in no batch, such as a second instruction.
    """

    op: Literal["episode_text"] = "episode_text"

    def output(self, given: ValueType) -> ValueType:
        """A text."""
        if given.kind != "text":
            raise ValueError(f"it takes a text, not {given}")
        return _TEXT

    def apply(self, values: np.ndarray, others: Others) -> np.ndarray:
        """The texts, unchanged."""
        differing = [t for t, text in enumerate(values) if bytes(text) != bytes(values[0])]
        if differing:
            found = f"{bytes(values[0])!r} at step 0 and {bytes(values[differing[0]])!r}"
            raise ValueError(f"the steps have several texts: {found} at step {differing[0]}")
        return values


def _texts(texts: Iterable[str]) -> np.ndarray:
    encoded = [text.encode() for text in texts]
    array = np.empty(len(encoded), object)
    array[:] = encoded
    return array
