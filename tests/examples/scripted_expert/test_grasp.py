import numpy as np
import pytest

from examples.scripted_expert.grasp import _across, _rim, find_grasp
from tests.examples.scripted_expert.test_scene_geometry import boxes
from tests.examples.scripted_expert.toy import ToySimulator

FAR = boxes(((9.0, 9.0, 0), (0.1, 0.1, 0.1)))


def ring(radius: float, height: float) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]:
    """The wall of a bowl: 12 small boxes."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    spots = [(radius * np.cos(a), radius * np.sin(a), height) for a in angles]
    return tuple((spot, (0.002, 0.002, 0.02)) for spot in spots)


@pytest.mark.parametrize(
    ("half", "yaw"),
    [((0.04, 0.02, 0.05), 0.0), ((0.02, 0.04, 0.05), -np.pi / 2), ((0.03, 0.03, 0.05), 0.0)],
)
def test_a_box_is_taken_across_its_narrow_side(half: tuple[float, ...], yaw: float) -> None:
    point, found = _across(boxes(((0.3, 0.2, 0.1), half)), FAR)
    assert found == pytest.approx(yaw)
    assert point == pytest.approx([0.3, 0.2, 0.115])  # 35 mm below its top


def test_fingers_stay_above_the_floor_under_something_flat() -> None:
    point, _ = _across(boxes(((0, 0, 0.01), (0.03, 0.02, 0.01))), FAR)
    assert point[2] == pytest.approx(0.014)


def test_a_bowl_is_taken_by_its_rim_where_there_is_room() -> None:
    bowl = boxes(*ring(0.05, 0.05))
    point, yaw = _rim(bowl, FAR)
    assert point == pytest.approx([0, 0.05, 0.056], abs=1e-6)  # along y: no turn of the wrist
    assert yaw == pytest.approx(0.0)
    wall = boxes(((0, 0.1, 0.05), (0.2, 0.01, 0.1)))
    point, yaw = _rim(bowl, wall)
    assert point[1] < -0.03
    assert yaw == pytest.approx(0.0)
    corner = boxes(((0, 0.1, 0.05), (0.2, 0.01, 0.1)), ((0, -0.1, 0.05), (0.2, 0.01, 0.1)))
    point, yaw = _rim(bowl, corner)
    assert abs(point[0]) > 0.04
    assert abs(yaw) > 1.0


def test_a_grasp_is_measured_from_the_objects_origin() -> None:
    grasp = find_grasp(ToySimulator(), "cup")
    assert grasp.offset == pytest.approx([0, 0, 0.005])
    assert grasp.yaw == pytest.approx(-np.pi / 2)
