import numpy as np
import pytest

from examples.scripted_expert.grasp import (
    DOWN,
    Boxes,
    boxes_of,
    direction,
    object_geoms,
    other_geoms,
    pointing_down,
    rotation_vector,
    yaw_to_open_along,
)
from tests.examples.scripted_expert.toy import CUP, ToySimulator


def boxes(*rows: tuple[tuple[float, ...], tuple[float, ...]]) -> Boxes:
    """Makes boxes of (center, half size), along the world's axes."""
    centers, halves = zip(*rows, strict=True)
    return Boxes(np.array(centers), np.tile(np.eye(3), (len(rows), 1, 1)), np.array(halves))


TWO = boxes(((0, 0, 1.0), (1.0, 2.0, 0.5)), ((4.0, 0, 3.0), (0.5, 0.5, 1.0)))


def test_extents_cover_all_boxes() -> None:
    assert TWO.corners.shape == (16, 3)
    assert (TWO.low, TWO.high) == (0.5, 4.0)
    assert TWO.middle.tolist() == [1.75, 0.0, 2.25]
    assert TWO.high_over(np.array([0.5, 0, 0])) == 1.5
    assert TWO.high_over(np.array([3.0, 0, 0])) == 4.0


def test_a_turned_box_is_measured_in_its_own_axes() -> None:
    turned = Boxes(np.zeros((1, 3)), pointing_down(0.3)[None], np.array([[1.0, 2.0, 3.0]]))
    axis = turned.rotations[0, :, 0]
    assert turned.distance(5 * axis[None]) == pytest.approx(4.0)
    assert turned.distance(np.array([0.5 * axis])) == 0.0
    assert np.linalg.norm(turned.corners, axis=1) == pytest.approx([np.sqrt(14)] * 8)


def test_the_distance_is_the_least_of_any_point_to_any_box() -> None:
    points = np.array([[0, 4.0, 1.0], [6.0, 0, 3.0]])
    assert TWO.distance(points) == 1.5
    assert TWO.distance(points[:1]) == 2.0
    assert boxes(((0, 0, 0), (1, 1, 1))).distance(np.array([[2.0, 2.0, 2.0]])) == pytest.approx(
        3**0.5
    )


def test_fingers_open_along_the_direction_that_is_asked_for() -> None:
    for angle in np.linspace(-7, 7, 57):
        yaw = yaw_to_open_along(float(angle))
        assert -np.pi / 2 <= yaw <= np.pi / 2
        opening = pointing_down(yaw)[:, 0]
        assert abs(opening @ direction(float(angle))) == pytest.approx(1.0)
    assert yaw_to_open_along(np.pi / 2) == pytest.approx(0.0)


def test_a_rotation_vector_turns_by_its_angle() -> None:
    turn = pointing_down(0.4) @ DOWN.T
    assert rotation_vector(turn) == pytest.approx([0, 0, 0.4])
    assert rotation_vector(pointing_down(-2.5) @ DOWN.T) == pytest.approx([0, 0, -2.5])
    assert rotation_vector(np.eye(3)).tolist() == [0, 0, 0]
    assert np.linalg.det(DOWN) == pytest.approx(1.0)


def test_geometry_is_distinguished_by_its_body() -> None:
    toy = ToySimulator()
    assert object_geoms(toy, "cup") == [2]
    assert other_geoms(toy, "cup") == [3, 4]  # neither the robot's nor the table, a plane
    cup = boxes_of(toy, [2])
    assert cup.middle == pytest.approx(toy.position("cup"))
    assert np.ptp(cup.corners, axis=0) == pytest.approx(2 * CUP)
