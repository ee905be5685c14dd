import re
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.data.int8_codec import GroupedInt8
from pipeline.errors import DataError


def coded(tokens: np.ndarray, code: GroupedInt8) -> bytes:
    """Encodes as the format describes, one group after the other."""
    exact, rest = tokens[: code.num_exact].astype(np.float16), tokens[code.num_exact :]
    scales = np.zeros((len(rest), tokens.shape[1] // code.group), np.float32)
    numbers = np.zeros(rest.shape, np.int8)
    for token in range(len(rest)):
        for group in range(scales.shape[1]):
            part = slice(group * code.group, (group + 1) * code.group)
            scale = np.abs(rest[token, part]).max() / np.float32(127)
            scales[token, group] = scale
            if scale:
                numbers[token, part] = np.round(rest[token, part] / scale)
    return code.pack(exact, scales, numbers)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("int8x128", GroupedInt8(128)),
        ("int8x64+5", GroupedInt8(64, 5)),
        ("int8x0", None),
        ("int8x128+0", None),
        ("int8", None),
        ("float16", None),
    ],
)
def test_a_code_is_its_text(text: str, code: GroupedInt8 | None) -> None:
    assert GroupedInt8.parse(text) == code
    if code is not None:
        assert str(code) == text


@pytest.mark.parametrize(
    ("width", "group"), [(2048, 128), (512, 128), (64, 64), (192, 96), (130, 65)]
)
def test_groups_are_of_128_or_what_divides_the_width(width: int, group: int) -> None:
    assert GroupedInt8.of_width(width, 0) == GroupedInt8(group)


def test_sizes_of_a_full_token_column() -> None:
    assert GroupedInt8(128, 5).num_bytes((261, 2048)) == 561_152  # 548 KiB; float16: 1044 KiB
    assert GroupedInt8(128).num_bytes((64, 2048)) == 135_168
    assert GroupedInt8(128).num_bytes((256, 512)) == 135_168


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_value_is_off_by_more_than_half_a_scale(dtype: str) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((9, 256), np.float32) * np.float32(3)
    code = GroupedInt8(128, 2)
    out = np.empty((9, 256), dtype)
    code.decode(coded(tokens, code), out, "here")
    np.testing.assert_array_equal(out[:2], tokens[:2].astype(np.float16))
    grouped = tokens[2:].reshape(7, 2, 128)
    scales = np.abs(grouped).max(axis=-1, keepdims=True) / 127
    error = np.abs(out[2:].reshape(7, 2, 128).astype(np.float32) - grouped)
    rounding = 0 if dtype == "float32" else 2.0**-11 * np.abs(grouped).max()
    assert (error <= scales * 0.50001 + rounding).all()
    # Uniform within a step of s, the error has a deviation of s / sqrt(12).
    assert 0.95 < np.sqrt((error**2).mean() / (scales**2 / 12).mean()) < 1.05


def test_a_channel_of_large_values_spoils_its_own_group_alone() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((4, 256), np.float32)
    tokens[:, 7] = 1000
    out = np.empty((4, 256), np.float32)
    GroupedInt8(128).decode(coded(tokens, GroupedInt8(128)), out, "here")
    error = np.abs(out - tokens)
    assert error[:, 128:].max() < 0.02
    assert error[:, :128].max() > 0.5


def test_zeros_stay_zeros() -> None:
    out = np.ones((3, 64), np.float32)
    code = GroupedInt8(64)
    code.decode(coded(np.zeros((3, 64), np.float32), code), out, "here")
    assert not out.any()


def test_bytes_of_another_number_are_refused() -> None:
    code = GroupedInt8(64, 1)
    data = coded(np.ones((3, 64), np.float32), code)
    message = "here: expected 264 bytes of int8x64+1[3, 64]; found 263 bytes. The shard is corrupt"
    with pytest.raises(DataError, match=re.escape(message)):
        code.decode(data[:-1], np.empty((3, 64), np.float32), "here")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda exact, scales: exact.__setitem__((0, 3), np.inf),
        lambda exact, scales: scales.__setitem__((1, 0), np.nan),
        lambda exact, scales: scales.__setitem__((1, 0), -1),
    ],
)
def test_what_no_encoder_writes_is_reported(spoil: Callable) -> None:
    code = GroupedInt8(64, 1)
    exact, scales = np.zeros((1, 64), np.float16), np.ones((2, 1), np.float32)
    numbers = np.zeros((2, 64), np.int8)
    code.check(code.pack(exact, scales, numbers), (3, 64), "here")
    spoil(exact, scales)
    with pytest.raises(DataError, match="expected finite tokens, and scales from 0; found 1 oth"):
        code.check(code.pack(exact, scales, numbers), (3, 64), "here")
