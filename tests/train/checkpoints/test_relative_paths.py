"""Absolute paths in JSON values, and the names that they get."""

import pytest

from train.checkpoints.relative_paths import absolute_paths, shortest_names, with_relative_paths


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("/home/alice/data/mini", "mini"),
        ("/home/alice/my data/mini", "mini"),
        (["/a/mini", "/b/mini", "/c"], ["a/mini", "b/mini", "c"]),
        (["/mini", "/b/mini"], ["mini", "b/mini"]),
        ({"/data/mini": {"path": "/data/mini"}}, {"mini": {"path": "mini"}}),
        ("collect.py /tmp/x --out=/tmp/y '/tmp/z' 3/4", "collect.py x --out=y 'z' 3/4"),
        ('{"weights":"/models/vggt.safetensors"}', '{"weights":"vggt.safetensors"}'),
    ],
)
def test_a_path_keeps_as_many_parts_as_tell_it_from_others(values, expected):
    names = shortest_names(absolute_paths(values))
    assert with_relative_paths(values, names) == expected


def test_other_values_stay():
    values = [
        "data/mini",
        "hf://alice/mini",
        "~/.cache",
        "octograin://x",
        "and/or",
        "",
        1,
        None,
        0.5,
    ]
    assert absolute_paths(values) == []
    assert with_relative_paths({"a": values}, {}) == {"a": values}
