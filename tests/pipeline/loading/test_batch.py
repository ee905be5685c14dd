import re

import numpy as np
import pytest

from pipeline.errors import SchemaError
from pipeline.loading.batch import LeafSpec, check_batch, table
from pipeline.loading.transforms.batch_transforms import fingerprint

SPEC = {
    "action": LeafSpec("float32", (2, 3)),
    "observation/image": LeafSpec("uint8", (2, 4)),
    "task/index": LeafSpec("int32", (2,)),
}


def batch(**changed: object) -> dict:
    """A batch of the contract, with some leaves changed; None takes one away."""
    leaves = {key: np.zeros(leaf.shape, leaf.dtype) for key, leaf in SPEC.items()} | changed
    return {key: leaf for key, leaf in leaves.items() if leaf is not None}


def test_batch_of_the_contract_passes() -> None:
    check_batch(batch(), SPEC)


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (np.array([["a", 1, None]] * 2, object), "object[2,3] found, such as 'a', 1, None"),
        (np.array([["a", "b", "c"]] * 2), "<U1[2,3] found, such as 'a', 'b', 'c'"),
        (np.full((2, 3), 0.5), "float64[2,3] found, such as 0.5, 0.5, 0.5"),
        (np.full((2, 3), 7), "int64[2,3] found, such as 7, 7, 7"),
        (np.zeros((2, 3), ">f4"), ">f4[2,3] found"),
        (np.zeros((2, 2), np.float32), "float32[2,2] found, such as 0.0, 0.0, 0.0"),
        (np.zeros((0, 3), np.float32), "float32[0,3] found, such as "),
        ([[0.0] * 3] * 2, "a list found"),
        ("text", "a str found"),
        (None, "missing"),
    ],
)
def test_leaf_that_breaks_the_contract_is_named_with_samples(leaf: object, found: str) -> None:
    message = re.escape(f"action: float32[2,3] expected, {found}") + ".*cast inside it"
    with pytest.raises(SchemaError, match=message):
        check_batch(batch(action=leaf), SPEC)


def test_all_bad_leaves_are_named_at_once() -> None:
    bad = batch(action=None, extra=np.zeros(1)) | {"task/index": np.zeros(2)}
    with pytest.raises(SchemaError) as caught:
        check_batch(bad, SPEC)
    assert caught.value.found == (
        "action: float32[2,3] expected, missing; "
        "extra: not in the contract, float64[1] found, such as 0.0; "
        "task/index: int32[2] expected, float64[2] found, such as 0.0, 0.0"
    )


def test_fingerprint_is_pinned() -> None:
    # May change with `fingerprint` alone; logs of older runs can then not be compared.
    assert fingerprint(batch()) == "592c1709c99534f3"


def flipped() -> np.ndarray:
    array = np.zeros((2, 4), np.uint8)
    array[1, 3] ^= 1
    return array


@pytest.mark.parametrize(
    "change",
    [
        {"observation/image": flipped()},
        {"observation/image": np.zeros((2, 4), np.int8)},
        {"observation/image": np.zeros((4, 2), np.uint8)},
        {"observation/image": None, "observation/picture": np.zeros((2, 4), np.uint8)},
        {"task/index": None},
    ],
    ids=["one bit", "dtype", "shape", "key", "fewer"],
)
def test_fingerprint_changes_with(change: dict) -> None:
    assert fingerprint(batch(**change)) != fingerprint(batch())


def test_fingerprint_does_not_depend_on_the_order_of_keys_or_the_layout_in_memory() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    ordered = batch(action=values)
    other = dict(reversed(batch(action=np.asfortranarray(values)).items()))
    assert fingerprint(ordered) == fingerprint(other)


def test_table_has_a_line_for_each_leaf() -> None:
    assert table(SPEC).splitlines() == [
        "action             float32[2,3]",
        "observation/image  uint8[2,4]",
        "task/index         int32[2]",
    ]
