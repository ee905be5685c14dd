"""Cameras: where they stand, how their images are mirrored, and what they see where.

A camera's axes are those of OpenCV and VGGT: x to the right of the image, y down, z forward. Its
pose takes points of the world to these axes: `rotation @ point + translation`, in m.

**Mirrored images.** LIBERO's datasets store images that are mirrored against what the camera sees.
A mirrored image is the true image of a mirrored world, so this file mirrors the pose as well; depth
moves with its pixel. Otherwise no rotation would explain how two stored views relate.
"""

import dataclasses
from typing import assert_never

import numpy as np

from pipeline.data.conventions import Conventions
from pipeline.data.rotations import from_matrix

POSE_DIM = 8
"""Translation (3), quaternion x y z w (4), field of view in rad (1)."""
TRANSLATION, QUATERNION = slice(0, 3), slice(3, 7)
"""Their places in an encoded pose."""

# MuJoCo's cameras look along -z, with y up.
_MUJOCO_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
# The world mirrored at the robot's plane of symmetry, which exchanges its left and right.
_MIRRORED_WORLD = np.diag([1.0, -1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Cameras:
    """One camera, or several: `...` stands for the same leading axes everywhere."""

    rotation: np.ndarray
    """float64 (..., 3, 3): from the world's axes to the camera's."""
    translation: np.ndarray
    """float64 (..., 3): the world's origin in the camera's axes, in m."""
    fov_y: np.ndarray
    """float64 (...): angle in rad between the upper and the lower border of the image."""

    def relative_to(self, reference: "Cameras") -> "Cameras":
        """The same cameras, where the reference's axes are the world's."""
        rotation = self.rotation @ np.swapaxes(reference.rotation, -1, -2)
        moved = (rotation @ reference.translation[..., None])[..., 0]
        return Cameras(rotation, self.translation - moved, self.fov_y)

    def encoded(self) -> np.ndarray:
        """float64 (..., 8): the numbers of `POSE_DIM`, the quaternion's w not negative.

        Source: VGGT's pose encoding, which has a field of view for each axis; images here are
        square.
        """
        quaternion = from_matrix(self.rotation, "quaternion_xyzw")
        # Of q and -q, a model can only learn one.
        quaternion = np.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
        return np.concatenate([self.translation, quaternion, self.fov_y[..., None]], axis=-1)


def mujoco_camera(position: np.ndarray, axes: np.ndarray, fov_y_deg: float) -> Cameras:
    """One camera from MuJoCo's numbers.

    Args:
      position: float64 (3) in m, such as `data.cam_xpos[number]`.
      axes: float64 (3, 3): the camera's axes as columns, such as `data.cam_xmat[number]`.
      fov_y_deg: Vertical field of view, such as `model.cam_fovy[number]`.
    """
    rotation = (axes @ _MUJOCO_TO_OPENCV).T
    return Cameras(rotation, -rotation @ position, np.asarray(np.radians(fov_y_deg)))


def as_stored(camera: Cameras, conventions: Conventions) -> Cameras:
    """The camera of which a stored image is the true one, in the world that it shows.

    Args:
      camera: The camera of the upright image.
      conventions: Conventions of the dataset, whose images `frame_to_image` turns.
    """
    match conventions.image_orientation:
        case "upright":
            return camera
        case "rotated_180":
            # An upside-down frame turned by 180 degrees: left and right are exchanged.
            flip = np.diag([-1.0, 1.0, 1.0])
        case "flipped_vertically":
            flip = np.diag([1.0, -1.0, 1.0])
        case _:
            assert_never(conventions.image_orientation)
    # Two reflections: the result is a rotation again.
    return Cameras(
        flip @ camera.rotation @ _MIRRORED_WORLD, camera.translation @ flip, camera.fov_y
    )


def unproject(depth_m: np.ndarray, camera: Cameras) -> np.ndarray:
    """float64 (side, side, 3): the point of the world that each pixel shows, in m.

    Args:
      depth_m: (side, side): distance along the camera's z axis.
      camera: One camera.
    """
    side = len(depth_m)
    # From the middle of the image to the middle of each pixel.
    offsets = (np.arange(side) + 0.5 - side / 2) / _focal_px(camera, side)
    x, y = np.meshgrid(offsets, offsets)
    seen = np.stack([x, y, np.ones_like(x)], axis=-1) * np.asarray(depth_m, float)[..., None]
    return (seen - camera.translation) @ camera.rotation


def project(points: np.ndarray, camera: Cameras, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Inverts `unproject`: where a camera sees points, and how far.

    Args:
      points: (..., 3) in m.
      camera: One camera.
      side: Height and width of the image.

    Returns:
      float64 (..., 2): column and row, whole numbers in the middle of a pixel; and float64 (...):
      the depth in m.
    """
    seen = points @ camera.rotation.T + camera.translation
    depth_m = seen[..., 2]
    pixels = seen[..., :2] / depth_m[..., None] * _focal_px(camera, side) + side / 2 - 0.5
    return pixels, depth_m


def orbited(
    position: np.ndarray,
    axes: np.ndarray,
    target: np.ndarray,
    turn: tuple[float, float],
    distance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A camera of MuJoCo moved around a point, which stays at its pixel.

    Args:
      position: float64 (3) in m.
      axes: float64 (3, 3): the camera's axes as columns.
      target: float64 (3): the point, in m.
      turn: Angles in rad: counterclockwise around the vertical, seen from above; and upward.
      distance: Factor of the distance from the point.

    Returns:
      The new position and axes.
    """
    azimuth, elevation = turn
    # Upward: around the camera's own horizontal axis, before it orbits.
    matrix = _about(np.array([0.0, 0.0, 1.0]), azimuth) @ _about(axes[:, 0], -elevation)
    return target + distance * matrix @ (position - target), matrix @ axes


def _about(axis: np.ndarray, angle: float) -> np.ndarray:
    """float64 (3, 3): the rotation about a unit vector by an angle in rad."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    # Rodrigues' formula.
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _focal_px(camera: Cameras, side: int) -> np.ndarray:
    """The focal length in pixels of a square image."""
    return side / 2 / np.tan(camera.fov_y / 2)
