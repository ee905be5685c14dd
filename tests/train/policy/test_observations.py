"""Observations of an environment: cast where nothing is lost, refused where they mean otherwise."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from train.policy.observations import check_observations, describe

SPECS: dict[str, LeafSpec | None] = {
    "image_primary": LeafSpec("uint8", (4, 6, 3)),
    "image_wrist": LeafSpec("uint8", (3, 2, 3)),
    "depth_primary": LeafSpec("float32", (4, 6, 1), is_depth=True),
    "depth_wrist": LeafSpec("float32", (2, 3, 1), is_depth=True),
    "heights": LeafSpec("float32", (5, 2)),
    "mask": LeafSpec("uint8", (4, 6, 1)),
    "labels": LeafSpec("uint8", (2,)),
    "raw_mm": LeafSpec("int32", (2, 2)),
    "contact": LeafSpec("bool", (2,)),
    "proprio": LeafSpec("float32", (3,)),
}
MILLIMETRES = np.arange(2**16, dtype=np.uint16)


def shown() -> dict[str, np.ndarray]:
    """An observation of the right types."""
    return {n: np.full(leaf.shape, 1, leaf.dtype) for n, leaf in SPECS.items() if leaf}


def checked(**changed: object) -> dict[str, np.ndarray]:
    return check_observations({0: shown() | changed}, SPECS)[0]


def test_cameras_and_depth_of_several_sizes_lie_beside_each_other() -> None:
    found = checked()
    assert {n: (a.dtype.name, a.shape) for n, a in found.items()} == {
        n: (leaf.dtype, leaf.shape) for n, leaf in SPECS.items() if leaf
    }
    assert describe({n: SPECS[n] for n in ("image_wrist", "depth_wrist")}) == (
        "image_wrist uint8[3,2,3], depth_wrist float32[2,3,1] in metres"
    )


def test_metres_of_any_float_become_the_nearest_float32() -> None:
    spec = LeafSpec("float32", (2**8, 2**8, 1), is_depth=True)
    # What a loader makes of every millimetre that a dataset can hold.
    expected = MILLIMETRES.astype(np.float32) / np.float32(1000)
    for metres in (MILLIMETRES / 1000, expected):
        given = {"depth": metres.reshape(spec.shape)}
        found = check_observations({0: given}, {"depth": spec})[0]["depth"]
        np.testing.assert_array_equal(found.ravel(), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"depth_primary": np.full((4, 6, 1), 1500, np.uint16)},
            r"found depth_primary: uint16\[4,6,1\] instead of floats in metres: divide millimetres "
            "by 1000",
        ),
        ({"depth_primary": np.ones((4, 6, 1), bool)}, r"bool\[4,6,1\] instead of floats in metres"),
        (
            {"depth_primary": np.full((4, 6, 1), 1500.0)},
            r"float64\[4,6,1\] with values from 1500 to 1500 instead of metres, 0 to 65.535: ",
        ),
        ({"depth_primary": np.full((4, 6, 1), -0.1)}, r"with values from -0.1 to -0.1 instead of"),
        ({"depth_primary": np.full((4, 6, 1), np.nan)}, "values that are not finite as float32"),
        ({"depth_primary": np.ones((4, 6), np.float32)}, r"found depth_primary: float32\[4,6\]\. "),
        ({"depth_wrist": np.ones((4, 6, 1), np.float32)}, r"depth_wrist: float32\[4,6,1\]\. Give"),
        ({"image_wrist": np.ones((2, 3, 3), np.uint8)}, r"found image_wrist: uint8\[2,3,3\]\. "),
        ({"mask": np.ones((4, 6, 3), np.uint8)}, r"found mask: uint8\[4,6,3\]"),
        ({"labels": np.array([0, 256])}, r"int64\[2\] with values that uint8 does not hold, such "),
        ({"raw_mm": np.full((2, 2), 1.5)}, "values that int32 does not hold, such as 1.5"),
        ({"raw_mm": np.full((2, 2), 1e12)}, "int32 does not hold, such as 1000000000000"),
        ({"contact": np.array([0, 2])}, "values that bool does not hold, such as 2"),
    ],
)
def test_values_that_would_change_their_meaning_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checked(**changed)


def test_whole_numbers_are_cast_to_what_the_model_reads() -> None:
    found = checked(
        labels=[3, 255], raw_mm=np.full((2, 2), 65535, np.uint16), contact=[0, 1], proprio=[1, 2, 3]
    )
    assert [found[n].tolist() for n in ("labels", "raw_mm", "contact", "proprio")] == [
        [3, 255],
        [[65535] * 2] * 2,
        [False, True],
        [1.0, 2.0, 3.0],
    ]
    assert found["proprio"].dtype == np.float32
