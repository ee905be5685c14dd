import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings, strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.rlds.example_parsing import parse_episode
from converters.rlds.rlds_source import RldsSource
from converters.rlds.tfrecord import frame
from converters.sources.reading import read_episodes
from converters.sources.source import Episode, SourceKey
from pipeline.errors import DataError, SchemaError

FIRST_SHARD = "toy-train.tfrecord-00000-of-00002"
NO_EXAMPLE = "here: expected a serialized tf.train.Example; found .*Convert from a directory"

FLOAT = SourceKey("steps/x", "tensor", (), "float32")
INTEGER = SourceKey("steps/x", "tensor", (), "int64")
TEXT = SourceKey("steps/x", "text", (), "utf8")


def read(source: RldsSource) -> list[dict[str, Any]]:
    return [episode for shard in source.shards for _, episode in read_episodes(source, shard)]


def parse(record: bytes | memoryview, *keys: SourceKey) -> Episode:
    return parse_episode(record, {key.key: key for key in keys}, "here")


def plain(value: Any) -> Any:
    """Blobs as bytes, numbers as their dtype and bits: two NaN are compared as well."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.tobytes()
    return [bytes(blob) for blob in value]


def expected(record: bytes) -> dict[str, Any]:
    """What protobuf's own classes read, in the form of `plain`."""
    features = tf_example.Example.FromString(record).features.feature
    read = {}
    for key, feature in features.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            read[key] = plain(list(feature.bytes_list.value))
        elif kind == "float_list":
            read[key] = plain(np.array(feature.float_list.value, np.float32))
        elif kind == "int64_list":
            read[key] = plain(np.array(feature.int64_list.value, np.int64))
    return read


# --- the message by hand


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A field of a message, with its length."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def message(key: str, kind: int, content: bytes) -> bytes:
    """An `Example` of one key, from the bytes of its list."""
    entry = field(1, key.encode()) + field(2, field(kind, content))
    return field(1, field(1, entry))


def unpacked(*values: float) -> bytes:
    """A `FloatList` as old writers encode it: a field of four bytes for each number."""
    return b"".join(b"\x0d" + struct.pack("<f", value) for value in values)


def packed(*values: float) -> bytes:
    return field(1, struct.pack(f"<{len(values)}f", *values))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (packed(1.5, -2.0), [1.5, -2.0]),
        (unpacked(1.5, -2.0), [1.5, -2.0]),
        (unpacked(1.5) + packed(-2.0), [1.5, -2.0]),
        (packed(1.5) + unpacked(-2.0), [1.5, -2.0]),
        (packed(1.5) + packed(-2.0), [1.5, -2.0]),
        (packed() + packed(1.5, -2.0), [1.5, -2.0]),
        (b"\x0a\x88\x00" + packed(1.5, -2.0)[2:], [1.5, -2.0]),  # a length in two bytes
        (packed(float("inf")), [float("inf")]),
        (packed(1e-45), [np.float32(1e-45)]),
    ],
)
def test_floats_are_read_in_every_encoding_that_protobuf_has(content: bytes, values: list) -> None:
    record = message("steps/x", 2, content)
    assert expected(record)["steps/x"] == plain(np.array(values, np.float32))
    assert plain(parse(record, FLOAT)["steps/x"]) == plain(np.array(values, np.float32))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (field(1, b"\x01\x02"), [1, 2]),
        (b"\x08\x01\x08\x02", [1, 2]),
        (field(1, b"\x01") + b"\x08\x02", [1, 2]),
        (field(1, b"\xff" * 9 + b"\x01" + b"\xff" * 8 + b"\x7f"), [-1, 2**63 - 1]),
    ],
)
def test_integers_are_read_in_every_encoding_that_protobuf_has(
    content: bytes, values: list[int]
) -> None:
    record = message("steps/x", 3, content)
    assert expected(record)["steps/x"] == plain(np.array(values))
    assert plain(parse(record, INTEGER)["steps/x"]) == plain(np.array(values))


@pytest.mark.parametrize("offset", range(8))
def test_packed_floats_and_bytes_are_views_of_the_record_at_any_offset(offset: int) -> None:
    record = b"\0" * offset + message("steps/x", 2, packed(1.5, -2.0, 3.0))
    found = parse(memoryview(record)[offset:], FLOAT)["steps/x"]
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [1.5, -2.0, 3.0]
    assert np.shares_memory(found, np.frombuffer(record, np.uint8))
    assert not found.flags.writeable
    record = b"\0" * offset + message("steps/x", 1, field(1, b"text"))
    (blob,) = parse(memoryview(record)[offset:], TEXT)["steps/x"]
    assert (blob.obj, bytes(blob)) == (record, b"text")


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (b"\x0d\0\0\0\0", "5 bytes: a field of wire type 5 at byte 0"),
        (b"\x08\x01", "2 bytes: a field of wire type 0 at byte 0"),
        (b"\x0a\x05\x0a", "3 bytes: a field of 5 bytes at byte 2 of 3"),
        (b"\x0a", "1 bytes: index out of bounds"),
        (b"\xff\xff\xff", "3 bytes: a field of wire type 7 at byte 0"),
        (b"\x0a" + b"\xff" * 10, "11 bytes: a number of more than 10 bytes at byte 1"),
        (field(2, b""), "2 bytes: a field 2 at byte 0"),
        (field(0, b""), "2 bytes: a field 0 at byte 0"),
        (field(1, field(2, b"")), "4 bytes: a field 2"),
        (field(1, field(1, field(3, b""))), "6 bytes: a field 3"),
        (field(1, field(1, field(1, b"\xe9"))), "'utf-8' codec can't decode byte 0xe9"),
        (message("steps/x", 4, b""), "a field 4"),
        (message("steps/x", 1, field(2, b"a")), "a field 2"),
        (message("steps/x", 1, b"\x0a\x02a"), "a field of 2 bytes at byte 2 of 3"),
        (message("steps/x", 2, b"\x0a\x03abc"), "Error parsing message"),
        (message("steps/x", 2, b"\x0d\0\0"), "Error parsing message"),
        (message("steps/x", 2, b"\x0a"), "index out of bounds"),
        (message("steps/x", 3, b"\x08"), "Error parsing message"),
    ],
)
def test_bytes_that_are_no_message_are_refused(record: bytes, found: str) -> None:
    with pytest.raises(DataError, match=NO_EXAMPLE) as caught:
        parse(record, TEXT)
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("key", "record", "message"),
    [
        (FLOAT, message("steps/x", 2, b""), "at least one step; found one without steps"),
        (FLOAT, message("steps/x", 2, packed()), "at least one step; found one without steps"),
        (INTEGER, message("steps/x", 3, b""), "at least one step; found one without steps"),
        (TEXT, message("steps/x", 1, b""), "at least one step; found one without steps"),
        (TEXT, field(1, field(1, field(1, b"steps/x"))), "found one without steps"),
        (TEXT, field(1, field(1, field(2, field(1, b"")))), "only keys of features.json; found "),
        (TEXT, b"", r"here, steps/x: expected utf8\[\]; found no such key"),
        (TEXT, field(1, b""), r"here, steps/x: expected utf8\[\]; found no such key"),
    ],
)
def test_empty_lists_and_messages_are_reported_as_what_is_missing(
    key: SourceKey, record: bytes, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        parse(record, key)


# --- any message

KEYS = st.one_of(st.text(max_size=8), st.integers(100, 300).map(lambda n: "k" * n))
LISTS = st.one_of(
    st.tuples(st.just("bytes_list"), st.lists(st.binary(max_size=20), min_size=1, max_size=5)),
    st.tuples(
        st.just("float_list"), st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=5)
    ),
    st.tuples(
        st.just("int64_list"),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
    ),
)
MESSAGES = st.dictionaries(KEYS, LISTS, min_size=1, max_size=5)
DTYPES = {"bytes_list": "utf8", "float_list": "float32", "int64_list": "int64"}


def serialized(lists: dict[str, tuple[str, list]]) -> tuple[bytes, list[SourceKey]]:
    """A message, and keys that declare what it holds: as one value outside the steps."""
    record = tf_example.Example()
    keys = [SourceKey("steps/x", "tensor", (), "float32")]
    record.features.feature["steps/x"].float_list.value.append(1.0)
    for key, (kind, values) in lists.items():
        getattr(record.features.feature[key], kind).value.extend(values)
        declared = "text" if kind == "bytes_list" else "tensor"
        shape = () if kind == "bytes_list" else (len(values),)
        keys.append(SourceKey(key, declared, shape, DTYPES[kind]))
    return record.SerializeToString(), keys


@settings(max_examples=60)
@given(lists=MESSAGES, offset=st.integers(0, 7))
def test_any_message_is_read_as_protobuf_reads_it(
    lists: dict[str, tuple[str, list]], offset: int
) -> None:
    texts = {key: (kind, values[:1] if kind == "bytes_list" else values)
             for key, (kind, values) in lists.items()}  # fmt: skip
    record, keys = serialized(texts)
    view = memoryview(b"\0" * offset + record)[offset:]
    found = parse(view, *keys)
    assert {key: plain(value) for key, value in found.items()} == expected(record)


@settings(max_examples=50)
@given(
    floats=st.lists(st.floats(width=32), min_size=1, max_size=40),
    blobs=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
)
def test_lists_of_any_length_are_read_as_protobuf_reads_them(
    floats: list[float], blobs: list[bytes]
) -> None:
    record = tf_example.Example()
    record.features.feature["steps/x"].float_list.value.extend(floats)
    found = parse(record.SerializeToString(), FLOAT)["steps/x"]
    assert plain(found) == plain(np.array(floats, np.float32))
    record.features.feature["steps/x"].bytes_list.value.extend(blobs)
    assert plain(parse(record.SerializeToString(), TEXT)["steps/x"]) == blobs


def outcome(record: bytes, keys: list[SourceKey]) -> dict[str, Any] | None:
    """What is read; None where it is refused. Another error than these two goes through."""
    try:
        found = parse(record, *keys)
    except DataError as error:
        return None if "expected a serialized tf.train.Example" in str(error) else {"other": error}
    except SchemaError:
        return None
    return {key: plain(value) for key, value in found.items()}


SMALL = {"a": ("bytes_list", [b"text"]), "b": ("int64_list", [1, -1]), "c": ("float_list", [0.5])}


def test_every_truncation_is_refused() -> None:
    record, keys = serialized(SMALL)
    assert outcome(record, keys) == expected(record)
    assert [outcome(record[:kept], keys) for kept in range(len(record))] == [None] * len(record)


CHANGES = (*(1 << place for place in range(8)), 0xFF)
"""One bit of a byte, or all."""


def test_any_changed_byte_is_refused_or_read_as_protobuf_reads_it() -> None:
    record, keys = serialized(SMALL)
    refused = 0
    for position in range(len(record)):
        for change in CHANGES:
            changed = bytearray(record)
            changed[position] ^= change
            found = outcome(bytes(changed), keys)
            refused += found is None
            if found is not None:
                assert found == expected(bytes(changed))
    assert 0 < refused < len(CHANGES) * len(record)


@settings(max_examples=500)
@given(garbage=st.binary(max_size=200))
@example(garbage=b"\xff" * 100_000)
@example(garbage=b"\x0a" * 1000)
def test_garbage_is_refused(garbage: bytes) -> None:
    assert outcome(garbage, [FLOAT]) is None


@settings(max_examples=300)
@given(kind=st.integers(1, 3), garbage=st.binary(max_size=40))
def test_a_list_of_garbage_is_refused_or_read_as_protobuf_reads_it(
    kind: int, garbage: bytes
) -> None:
    record = message("steps/x", kind, garbage)
    found = outcome(record, [(TEXT, FLOAT, INTEGER)[kind - 1]])
    if found is not None:
        assert found == expected(record)


# --- episodes


def test_episodes_come_back_as_they_were_written(toy: Any, tmp_path: Path) -> None:
    episodes = read(toy.open(tmp_path))
    assert len(episodes) == len(toy.episodes)
    for found, written in zip(episodes, toy.episodes, strict=True):
        assert sorted(found) == sorted(written)
        assert found["steps/action"].dtype == np.float32
        for key, values in written.items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(found[key], values)
            else:
                assert [bytes(value) for value in found[key]] == values


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.bool_, [True, False, True]),
        (np.uint8, [0, 128, 255]),
        (np.int8, [-128, 0, 127]),
        (np.int32, [-(2**31), 0, 2**31 - 1]),
        (np.int64, [-(2**63), 0, 2**63 - 1]),
        (np.float16, [0.1, -65504.0, 6e-8]),
        (ml_dtypes.bfloat16, [0.1, -3e38, 1e-38]),
        (np.float32, [0.1, -3.4e38, 1e-45]),
        (np.float64, [0.5, -3.0, 1e10]),
    ],
)
def test_every_declared_dtype_comes_back_exactly(
    toy: Any, tmp_path: Path, dtype: Any, values: list[Any]
) -> None:
    array = np.array(values).astype(dtype)
    # Stored as float32 or int64, the two numeric lists of a tf.train.Example.
    wide = np.float32 if np.issubdtype(np.array(values).dtype, np.floating) else np.int64
    toy = toy.having("steps/x", tfds.features.Scalar(dtype), array.astype(wide))
    for episode in read(toy.open(tmp_path)):
        assert episode["steps/x"].dtype == array.dtype
        np.testing.assert_array_equal(episode["steps/x"], array)


def test_a_uint64_is_read_from_the_bits_of_an_int64(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("steps/x", tfds.features.Scalar(np.uint64), [1, -1, 0])
    assert read(toy.open(tmp_path))[0]["steps/x"].tolist() == [1, 2**64 - 1, 0]


def test_bytes_that_are_no_example_are_refused(toy: Any, tmp_path: Path) -> None:
    source = toy.open(tmp_path)
    (tmp_path / "toy" / "1.0.0" / FIRST_SHARD).write_bytes(frame(b"\xff\xff\xff"))
    with pytest.raises(DataError, match=r"episode 0: expected a serialized tf.train.Example"):
        read(source)


WORDS = [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("steps/reward", [0.0] * 3, "only keys of features.json; found steps/reward"),
        ("steps/action", [1, 2, 3, 4, 5, 6], "steps/action: expected float_list; found int64_list"),
        ("steps/action", WORDS, "steps/action: expected float_list; found bytes_list"),
        ("steps/count", [1.0] * 3, "steps/count: expected int64_list; found float_list"),
        ("steps/observation/image", [1.0] * 3, "image: expected bytes_list; found float_list"),
        ("steps/action", [0.0] * 5, "steps/action: expected a multiple of 2 values; found 5"),
        ("steps/action", [0.0] * 4, r"same number of steps for every key.*'steps/action': 2"),
        ("steps/language_instruction", WORDS[:2], "'steps/language_instruction': 2"),
        (
            "steps/count",
            [1, 300, 2],
            "steps/count: expected uint8 values; found values such as 300",
        ),
        ("steps/count", [1, -1, 2], "steps/count: expected uint8 values; found values such as -1"),
        ("episode_metadata/file_path", WORDS, "file_path: expected one value per episode; found 3"),
    ],
)
def test_an_episode_unlike_its_declaration_is_refused(
    toy: Any, tmp_path: Path, key: str, values: list, message: str
) -> None:
    toy = toy.having("steps/count", tfds.features.Scalar(np.uint8), [1, 2, 3])
    with pytest.raises(SchemaError, match=f"{FIRST_SHARD}, episode 0.*{message}"):
        read(toy.holding(key, values).open(tmp_path))


def test_a_declared_key_that_an_episode_lacks_is_refused(toy: Any, tmp_path: Path) -> None:
    message = r"episode 0, steps/action: expected float32\[2\]; found no such key"
    with pytest.raises(SchemaError, match=message):
        read(toy.without("steps/action").open(tmp_path))


def test_an_episode_without_steps_is_refused(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("steps/reward", tfds.features.Scalar(np.float32), [])
    for key in ("steps/language_instruction", "steps/observation/image"):
        toy = toy.without(key)
    features = {k: v for k, v in toy.features.items() if k in ("steps/action", "steps/reward")}
    toy = type(toy)(features, toy.episodes).holding("steps/action", [])
    toy = toy.without("episode_metadata/file_path")
    with pytest.raises(SchemaError, match="at least one step; found one without steps"):
        read(toy.open(tmp_path))
