"""Quantizes tokens to int8 with one scale per group, at a quarter of the size of float32.

Tokens of shape `(n, d)` are stored back to back as:

    the first `num_exact` tokens     float16  (num_exact, d)
    scales of the others             float32  (n - num_exact, d / group)
    their codes, -127 to 127         int8     (n - num_exact, d)

A value is its code times the scale of its group; the scale is the group's largest magnitude / 127.
So the error of a value is at most half a scale, and a channel of large values only affects its own
group. Heavy-tailed tokens, such as those of camera and registers, can come first and stay float16.
"""

import dataclasses
import math
import re

import numpy as np

from pipeline.errors import DataError

LARGEST = 127
"""Largest magnitude of a code."""
# Smaller groups cost more scales, larger ones let one large channel spoil more others.
_GROUP = 128


@dataclasses.dataclass(frozen=True)
class GroupedInt8:
    """The layout of quantized tokens; as text, a feature's dtype at rest such as `int8x128+5`."""

    group: int
    """Number of codes along the last axis that share a scale."""
    num_exact: int = 0
    """Number of leading tokens that stay float16."""

    @classmethod
    def of_width(cls, width: int, num_exact: int) -> "GroupedInt8":
        """Chooses the largest group size up to 128 that divides `width`."""
        return cls(max(n for n in range(1, _GROUP + 1) if width % n == 0), num_exact)

    @classmethod
    def parse(cls, text: str) -> "GroupedInt8 | None":
        """Inverts `str`; None for any other text."""
        match = re.fullmatch(r"int8x([1-9]\d*)(?:\+([1-9]\d*))?", text)
        return cls(int(match[1]), int(match[2] or 0)) if match else None

    def __str__(self) -> str:
        """Formats the layout: `int8x128`, or `int8x128+5` with five tokens of float16."""
        return f"int8x{self.group}" + (f"+{self.num_exact}" if self.num_exact else "")

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether tokens of that shape can be quantized with this layout."""
        return len(shape) == 2 and self.num_exact <= shape[0] and shape[1] % self.group == 0

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Size in bytes of quantized tokens of that shape."""
        num_tokens, width = shape
        num_coded = num_tokens - self.num_exact
        # float16 tokens, then one byte per code and four per scale.
        return 2 * self.num_exact * width + num_coded * (width + 4 * (width // self.group))

    def pack(self, exact: np.ndarray, scales: np.ndarray, numbers: np.ndarray) -> bytes:
        """Joins the parts of quantized tokens into bytes.

        Args:
          exact: float16 (e d), the tokens that are not quantized.
          scales: float32 (m g), the scales of the others.
          numbers: int8 (m d), their codes.
        """
        return exact.tobytes() + scales.tobytes() + numbers.tobytes()

    def split(
        self, data: bytes, shape: tuple[int, ...], where: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inverts `pack`, without a copy.

        Args:
          data: The bytes that `pack` returned.
          shape: (n, d) of the tokens.
          where: Dataset, record and feature, for the error.

        Raises:
          DataError: The number of bytes does not match the shape.
        """
        # Views of the bytes below: a wrong size must show before.
        if len(data) != self.num_bytes(shape):
            raise DataError(
                where=where,
                expected=f"{self.num_bytes(shape)} bytes of {self}{list(shape)}",
                found=f"{len(data)} bytes",
                remedy="The shard is corrupt: copy it again, or compute the column again.",
            )
        (num_tokens, width), exact = shape, self.num_exact
        num_scales = (num_tokens - exact) * (width // self.group)
        of_scales = 2 * exact * width
        of_numbers = of_scales + 4 * num_scales
        return (
            np.frombuffer(data, np.float16, exact * width).reshape(exact, width),
            np.frombuffer(data, np.float32, num_scales, of_scales).reshape(num_tokens - exact, -1),
            np.frombuffer(data, np.int8, offset=of_numbers).reshape(num_tokens - exact, width),
        )

    def decode(self, data: bytes, out: np.ndarray, where: str) -> None:
        """Dequantizes tokens into `out`.

        Args:
          data: The bytes that `pack` returned.
          out: float32 or float16 (n d), contiguous; overwritten.
          where: Dataset, record and feature, for the error.

        Raises:
          DataError: The number of bytes does not match the shape of `out`.
        """
        exact, scales, numbers = self.split(data, out.shape, where)
        out[: self.num_exact] = exact
        # (m, groups, group)
        grouped = (*scales.shape, self.group)
        np.multiply(
            numbers.reshape(grouped),
            scales[..., np.newaxis],
            # A view of the batch's array: nothing is allocated for the product.
            out=out[self.num_exact :].reshape(grouped),
            casting="same_kind",  # into float16, each float32 product is rounded once
        )

    def check(self, data: bytes, shape: tuple[int, ...], where: str) -> None:
        """Checks what `decode` does not check.

        Raises:
          DataError: The number of bytes does not match, a token or scale is not finite, or a scale
            is negative.
        """
        exact, scales, _ = self.split(data, shape, where)
        num_wrong = int((~np.isfinite(exact)).sum())
        # `not (scale >= 0)` also finds NaN.
        num_wrong += int((~((scales >= 0) & (scales < math.inf))).sum())
        if num_wrong:
            raise DataError(
                where=where,
                expected="finite tokens, and scales from 0",
                found=f"{num_wrong} others",
                remedy="Compute the column again.",
            )
