import pytest

from pipeline.data.schema import Feature
from pipeline.inspection.feature_names import dim_names, split_unit


def feature(shape: tuple[int, ...], *dims: str) -> Feature:
    return Feature("f", "tensor", shape, "float32", "float32", "steps/f", dims=dims)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (feature((2,), "x_m", "y_m"), ("x_m", "y_m")),
        (feature((2,)), ("[0]", "[1]")),
        (feature((2, 2), "u", "v"), ("[0] u", "[0] v", "[1] u", "[1] v")),
        (feature((1, 2)), ("[0, 0]", "[0, 1]")),
        (feature(()), ("",)),
    ],
)
def test_every_value_of_a_step_has_a_name(given: Feature, names: tuple[str, ...]) -> None:
    assert dim_names(given) == names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("rz_rad", ("rz", "rad")),
        ("gripper_left_m", ("gripper left", "m")),
        ("vx_m_s", ("vx", "m/s")),
        ("tilt_deg", ("tilt", "°")),
        ("dx", ("dx", "")),
        ("m", ("m", "")),
        ("[3]", ("[3]", "")),
        ("", ("", "")),
    ],
)
def test_unit_is_split_from_a_name(name: str, parts: tuple[str, str]) -> None:
    assert split_unit(name) == parts
