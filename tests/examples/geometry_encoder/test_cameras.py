import dataclasses

import numpy as np
import pytest

from converters.mapping.mapping_registry import registered
from examples.geometry_encoder.cameras import (
    Cameras,
    as_stored,
    mujoco_camera,
    orbited,
    project,
    unproject,
)
from pipeline.data.conventions import Conventions
from train.evaluate.libero.simulator_conventions import frame_to_image

SIDE = 56
CONVENTIONS = registered("libero").conventions
POSITION = np.array([0.66, 0.0, 1.6])
FORWARD, RIGHT = np.array([-0.78, 0.0, -0.62]), np.array([0.0, 1.0, 0.0])
TARGET = np.array([-0.23, 0.0, 0.9])
TABLE_M = 0.9


def looking_down(turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Position and axes of LIBERO's third-person camera, or of one moved by some rad."""
    backward = -FORWARD / np.linalg.norm(FORWARD)
    axes = np.stack([RIGHT, np.cross(backward, RIGHT), backward], axis=1)
    return orbited(POSITION, axes, TARGET, (turn, 0.2 * turn), 1 + 0.1 * turn)


def scene(points: np.ndarray) -> np.ndarray:
    """A color in [0, 1] for each place of the table, not symmetric to any plane."""
    x, y = points[..., 0], points[..., 1]
    return np.stack([np.sin(4 * x + 2 * y), np.cos(5 * y - x), np.sin(3 * y)], axis=-1) / 2 + 0.5


def frame(position: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a renderer gives, upside down: colors (y, x, 3) and depth (y, x) of an empty table.

    Rays are cut with the table, in MuJoCo's axes: other code than is tested.
    """
    steps = (np.arange(SIDE) + 0.5 - SIDE / 2) * np.tan(np.radians(22.5)) / (SIDE / 2)
    x, y = np.meshgrid(steps, steps)  # the first row is the lowest
    rays = np.stack([x, y, -np.ones_like(x)], axis=-1) @ axes.T
    depth = (TABLE_M - position[2]) / rays[..., 2]
    return scene(position + rays * depth[..., None]), depth


def stored(
    turn: float, conventions: Conventions = CONVENTIONS
) -> tuple[np.ndarray, np.ndarray, Cameras]:
    """Image, depth and camera as they are stored."""
    position, axes = looking_down(turn)
    image, depth = (frame_to_image(array, conventions) for array in frame(position, axes))
    return image, depth, as_stored(mujoco_camera(position, axes, 45.0), conventions)


@pytest.mark.parametrize("orientation", ["upright", "rotated_180", "flipped_vertically"])
def test_depth_takes_each_pixel_of_a_stored_view_to_its_place_in_another(orientation: str) -> None:
    conventions = dataclasses.replace(CONVENTIONS, image_orientation=orientation)
    image, depth, camera = stored(0.0, conventions)
    other_image, other_depth, other = stored(0.4, conventions)
    pixels, seen_depth = project(unproject(depth, camera), other, SIDE)
    is_inside = ((pixels >= 0) & (pixels <= SIDE - 1)).all(axis=-1)
    assert is_inside.mean() > 0.5
    column, row = np.rint(pixels[is_inside]).astype(int).T
    # The nearest pixel is up to half a pixel away.
    assert np.abs(seen_depth[is_inside] - other_depth[row, column]).max() < 0.03
    assert np.abs(image[is_inside] - other_image[row, column]).mean() < 0.03


def test_the_camera_of_an_upright_image_does_not_explain_mirrored_ones() -> None:
    (image, depth, camera), (other_image, _, other) = stored(0.0), stored(0.4)
    upright = [mujoco_camera(*looking_down(turn), 45.0) for turn in (0.0, 0.4)]
    # The one in the mirror's plane is its own mirror image; the moved one is on the other side.
    np.testing.assert_allclose(camera.rotation, upright[0].rotation, atol=1e-12)
    assert np.abs(other.rotation - upright[1].rotation).max() > 0.5
    pixels, _ = project(unproject(depth, upright[0]), upright[1], SIDE)
    column, row = np.clip(np.rint(pixels), 0, SIDE - 1).astype(int).reshape(-1, 2).T
    assert np.abs(image.reshape(-1, 3) - other_image[row, column]).mean() > 0.1


def test_a_mirrored_pose_is_a_rotation() -> None:
    _, _, camera = stored(0.3)
    np.testing.assert_allclose(camera.rotation @ camera.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.rotation) == pytest.approx(1.0)


def test_projecting_inverts_unprojecting() -> None:
    _, depth, camera = stored(-0.2)
    pixels, seen = project(unproject(depth, camera), camera, SIDE)
    column, row = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    np.testing.assert_allclose(pixels, np.stack([column, row], axis=-1), atol=1e-9)
    np.testing.assert_allclose(seen, depth)


def test_a_moved_camera_keeps_the_point_at_its_pixel_and_goes_where_it_is_sent() -> None:
    before, axes = looking_down()
    position, moved = orbited(before, axes, TARGET, (np.pi / 2, 0.1), 1.5)
    was, is_now = (
        project(TARGET, mujoco_camera(*pose, 45.0), SIDE)
        for pose in ((before, axes), (position, moved))
    )
    np.testing.assert_allclose(is_now[0], was[0], atol=1e-9)
    assert is_now[1] == pytest.approx(1.5 * was[1])
    # Counterclockwise from +x is +y; and higher.
    assert position[1] > 1.0
    assert abs(position[0] - TARGET[0]) < 1e-9
    upward = (position - TARGET)[2] / 1.5
    assert upward > (before - TARGET)[2] + 0.05


def test_relative_poses_lead_from_one_camera_to_the_other() -> None:
    (_, depth, first), (_, _, second) = stored(0.0), stored(0.4)
    points = unproject(depth, first)
    of_first = points @ first.rotation.T + first.translation
    relative = second.relative_to(first)
    np.testing.assert_allclose(
        of_first @ relative.rotation.T + relative.translation,
        points @ second.rotation.T + second.translation,
    )
    np.testing.assert_allclose(
        first.relative_to(first).encoded(), [0, 0, 0, 0, 0, 0, 1, np.radians(45)], atol=1e-12
    )


def test_a_quaternion_has_no_negative_w() -> None:
    turned = np.diag([-1.0, -1.0, 1.0])  # half a turn, and a little more or less
    for angle in (-0.1, 0.1):
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = turned @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        pose = Cameras(rotation, np.arange(3.0), np.array(0.5)).encoded()
        assert pose[6] >= 0
        np.testing.assert_allclose(np.abs(pose[5]), np.cos(angle / 2))
        np.testing.assert_allclose(pose[[0, 1, 2, 7]], [0, 1, 2, 0.5])
