"""How to take an object: across its narrowest side, or by its rim where it is too wide for that."""

import dataclasses

import numpy as np

from converters.libero_demos.scene_geometry import (
    Boxes,
    boxes_of,
    direction,
    object_geoms,
    other_geoms,
    yaw_to_open_along,
)
from train.evaluate.libero.simulator import Simulator

_OPENING_M = 0.075
"""Between the open fingers, less a margin: 0.08."""
_NUM_YAWS = 12
_NUM_SIDES = 16
_ROOM_M = 0.06
"""More room than this around the gripper is no better."""
_ROOM_PER_RAD_M = 0.02
"""Room that a turn of the wrist by a rad has to gain."""
_WIDTH_PER_RAD_M = 0.01
"""Narrowness that it has to gain."""
_RIM_DEPTH_M = 0.014
_DEPTH_M = 0.035
_FLOOR_M = 0.014
"""Least height of the end effector above the object's lowest point; fingers reach 1 cm lower."""
_RIM_PART_M = 0.03

_FINGERS_M = (-0.05, -0.03, 0.0, 0.03, 0.05)
_HAND_M = (-0.09, -0.045, 0.0, 0.045, 0.09)
"""Along the fingers' opening: where the open gripper must not touch anything."""
_HAND_ABOVE_M = 0.09


@dataclasses.dataclass(frozen=True)
class Grasp:
    """A place on an object, which moves along with it."""

    offset: np.ndarray
    """float64 (3): of the end effector from the body's origin, in m and the world's axes."""
    yaw: float
    """Yaw of the wrist, in rad."""


def find_grasp(simulator: Simulator, name: str) -> Grasp:
    """The grasp of an object as it stands now."""
    boxes = boxes_of(simulator, object_geoms(simulator, name))
    others = boxes_of(simulator, other_geoms(simulator, name))
    point, yaw = _across(boxes, others)
    # Wider than the fingers open.
    if _width(boxes.corners, yaw) > _OPENING_M:
        point, yaw = _rim(boxes, others)
    return Grasp(point - simulator.position(name), yaw)


def _across(boxes: Boxes, others: Boxes) -> tuple[np.ndarray, float]:
    """(point, yaw) over the middle, with the least width between the fingers."""
    corners = boxes.corners
    point = boxes.middle
    point[2] = max(boxes.high - _DEPTH_M, boxes.low + _FLOOR_M)
    # Half a turn covers all: a gripper is symmetric.
    yaws = np.linspace(-np.pi / 2, np.pi / 2, _NUM_YAWS, endpoint=False)

    def cost(yaw: float) -> float:
        room = _room(point, yaw, others)
        # Narrow, little turned, with room around.
        return _width(corners, yaw) + _WIDTH_PER_RAD_M * abs(yaw) - min(room, _ROOM_M / 2) / 2

    return point, min((float(yaw) for yaw in yaws), key=cost)


def _rim(boxes: Boxes, others: Boxes) -> tuple[np.ndarray, float]:
    """(point, yaw) on the rim of something round, where there is most room."""
    middle = boxes.middle
    # Only the upper part: a bowl is narrower below.
    upper = boxes.centers[boxes.centers[:, 2] > boxes.high - _RIM_PART_M]
    radius = float(np.linalg.norm((upper - middle)[:, :2], axis=1).max())
    middle[2] = boxes.high - _RIM_DEPTH_M

    def candidate(angle: float) -> tuple[np.ndarray, float]:
        return middle + radius * direction(angle), yaw_to_open_along(angle)

    def merit(angle: float) -> float:
        point, yaw = candidate(angle)
        # Room above 0.06 m is no better, and a turn of the wrist has to be worth it.
        return min(_room(point, yaw, others), _ROOM_M) - _ROOM_PER_RAD_M * abs(yaw)

    # Along y first: of equals, the one without a turn of the wrist.
    angles = np.pi / 2 + np.linspace(0.0, 2 * np.pi, _NUM_SIDES, endpoint=False)
    return candidate(max((float(angle) for angle in angles), key=merit))


def _width(corners: np.ndarray, yaw: float) -> float:
    """Extent between fingers that open along `yaw` from y."""
    along = corners @ direction(yaw + np.pi / 2)
    return float(np.ptp(along))


def _room(point: np.ndarray, yaw: float, others: Boxes) -> float:
    """Distance of the open gripper to what must not be touched."""
    opening = direction(yaw + np.pi / 2)
    up = np.array([0.0, 0.0, 1.0])
    fingers = [point + s * opening for s in _FINGERS_M]
    hand = [point + s * opening + _HAND_ABOVE_M * up for s in _HAND_M]
    return others.distance(np.array(fingers + hand))
