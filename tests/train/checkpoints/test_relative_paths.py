"""Absolute paths in JSON values, and the names that they get."""

import pytest

from pipeline.errors import UserError
from train.checkpoints.relative_paths import absolute_paths, shortest_names, with_relative_paths


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("/home/alice/data/mini", "mini"),
        ("/home/alice/my data/mini", "mini"),
        (["/a/mini", "/b/mini", "/c"], ["a/mini", "b/mini", "c"]),
        (["/mini", "/b/mini"], ["mini", "b/mini"]),
        ({"/data/mini": {"path": "/data/mini"}}, {"mini": {"path": "mini"}}),
        ({"mini": 1, "/x/mini": 2, "/y": 3}, {"mini": 1, "x/mini": 2, "y": 3}),
        ([{"x/mini": 1, "mini": 2}, {"/x/mini": 3}], [{"x/mini": 1, "mini": 2}, {"x/mini_2": 3}]),
        ({"mini": 1, "/mini": 2, "/b/mini": 3}, {"mini": 1, "mini_2": 2, "b/mini": 3}),
        ("collect.py /tmp/x --out=/tmp/y '/tmp/z' 3/4", "collect.py x --out=y 'z' 3/4"),
        ('{"weights":"/models/vggt.safetensors"}', '{"weights":"vggt.safetensors"}'),
    ],
)
def test_a_path_keeps_as_many_parts_as_tell_it_from_others(values, expected):
    names = shortest_names(values)
    assert with_relative_paths(values, names) == expected


def test_keys_that_would_become_one_are_refused():
    values = {"datasets": {"/x/mini": 1, "/x/mini/": 2}}
    with pytest.raises(UserError, match=r"distinct ones .*; found several for one of mini\."):
        with_relative_paths(values, shortest_names(values))


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
