"""What is serialized is what protobuf, and the parser of the source, read."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example

from converters.rlds.example_parsing import parse_episode
from converters.rlds.example_writing import serialize_episode
from converters.sources.source import SourceKey


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    floats=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=300),
    ints=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
    texts=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
)
def test_an_episode_survives_the_way_into_bytes_and_back(
    floats: list[float], ints: list[int], texts: list[bytes]
) -> None:
    num_steps = min(len(floats), len(ints), len(texts))
    values = {
        "steps/floats": np.array(floats[:num_steps], np.float32),
        "steps/ints": np.array(ints[:num_steps], np.int32),
        "steps/texts": texts[:num_steps],
        "id": texts[:1],
    }
    keys = {
        "steps/floats": SourceKey("steps/floats", "tensor", (), "float32"),
        "steps/ints": SourceKey("steps/ints", "tensor", (), "int32"),
        "steps/texts": SourceKey("steps/texts", "text", (), "utf8"),
        "id": SourceKey("id", "text", (), "utf8"),
    }
    parsed = parse_episode(serialize_episode(values), keys, "here")
    np.testing.assert_array_equal(parsed["steps/floats"], values["steps/floats"], strict=True)
    np.testing.assert_array_equal(parsed["steps/ints"], values["steps/ints"], strict=True)
    assert [bytes(text) for text in parsed["steps/texts"]] == values["steps/texts"]
    assert [bytes(text) for text in parsed["id"]] == values["id"]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 127, 128, 16383, 16384, 2**21])
def test_protobuf_reads_lists_of_every_length(size: int) -> None:
    values = {
        "b": np.arange(size, dtype=np.float64),
        "a": np.arange(size, dtype=np.uint8),
        "c": [bytes(size), b""],
    }
    record = serialize_episode(values)
    features = tf_example.Example.FromString(record).features.feature
    assert sorted(features) == ["a", "b", "c"]
    np.testing.assert_array_equal(features["a"].int64_list.value, values["a"])
    np.testing.assert_array_equal(features["b"].float_list.value, values["b"])
    assert list(features["c"].bytes_list.value) == values["c"]
