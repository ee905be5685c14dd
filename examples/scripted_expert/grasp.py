"""How to grasp an object: across its narrowest side, or by its rim where it is too wide for that.

Lengths are in m, positions in the world frame. Objects are seen as the bounding boxes of their
collision geometry.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

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

_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_ROBOT_BODIES = ("robot", "gripper", "mount")
"""Beginnings of the names of its bodies."""
_PLANE = 0
"""MuJoCo's number of the one kind of geometry without bounds."""

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
"""Orientation of the end effector that points down, its fingers opening along y: columns are its
axes. The fingers open along the first one."""


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Bounding boxes of the collision geometry of some bodies, each in its own orientation."""

    centers: np.ndarray
    """float64 (n, 3)."""
    rotations: np.ndarray
    """float64 (n, 3, 3): columns are the boxes' axes."""
    half_sizes: np.ndarray
    """float64 (n, 3)."""

    @property
    def corners(self) -> np.ndarray:
        """float64 (8 n, 3)."""
        # (n, 8, 3): the corners of each box in its own axes, turned into the world's.
        offsets = np.einsum("nij,kj,nj->nki", self.rotations, _CORNERS, self.half_sizes)
        return (self.centers[:, None] + offsets).reshape(-1, 3)

    @property
    def middle(self) -> np.ndarray:
        """float64 (3): of the box along the world's axes that holds all."""
        corners = self.corners
        return (corners.min(axis=0) + corners.max(axis=0)) / 2

    @property
    def low(self) -> float:
        """Height of the lowest point."""
        return float(self.corners[:, 2].min())

    @property
    def high(self) -> float:
        """Height of the highest point."""
        return float(self.corners[:, 2].max())

    def high_over(self, point: np.ndarray) -> float:
        """Height of the highest point of the box whose middle is horizontally next to a point."""
        nearest = np.linalg.norm((self.centers - point)[:, :2], axis=1).argmin()
        return float(self.corners.reshape(-1, 8, 3)[nearest, :, 2].max())

    def distance(self, points: np.ndarray) -> float:
        """The least distance of some points (m, 3) to any of the boxes; 0 inside one."""
        # (m, n, 3): each point in the axes of each box.
        local = np.einsum("nij,mni->mnj", self.rotations, points[:, None] - self.centers)
        # 0 on the axes within whose faces the point lies.
        outside = np.maximum(np.abs(local) - self.half_sizes, 0.0)
        return float(np.linalg.norm(outside, axis=-1).min(initial=np.inf))


def object_geoms(simulator: Simulator, name: str) -> list[int]:
    """Numbers of an object's collision geometry."""
    model, root = simulator.model, simulator.body_id(name)
    return [g for g in _solid_geoms(model) if _is_below(model, g, root)]


def other_geoms(simulator: Simulator, name: str) -> list[int]:
    """Numbers of the collision geometry of all but the robot and one object."""
    model, root = simulator.model, simulator.body_id(name)
    return [
        g
        for g in _solid_geoms(model)
        if not _is_below(model, g, root)
        and not model.body(model.body_rootid[model.geom_bodyid[g]]).name.startswith(_ROBOT_BODIES)
    ]


def boxes_of(simulator: Simulator, geoms: list[int]) -> Boxes:
    """The bounding boxes of some geometry, where it is now."""
    model, data = simulator.model, simulator.data
    rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
    # Middle and half sizes of each box, in the geometry's own frame.
    local = model.geom_aabb[geoms].reshape(-1, 6)
    centers = data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotations, local[:, :3])
    return Boxes(centers, rotations, local[:, 3:])


def _solid_geoms(model: Any) -> list[int]:
    """Geometry that touches something and is bounded."""
    # Geometry without these bits is only drawn.
    touches = (model.geom_contype | model.geom_conaffinity) != 0
    return np.flatnonzero(touches & (model.geom_type != _PLANE)).tolist()


def _is_below(model: Any, geom: int, root: int) -> bool:
    """Whether geometry belongs to a body or to one that hangs from it."""
    body = int(model.geom_bodyid[geom])
    # Body 0 is the world, where every chain ends.
    while body not in (0, root):
        body = int(model.body_parentid[body])
    return body == root


def direction(angle: float) -> np.ndarray:
    """float64 (3): the horizontal unit vector at an angle in rad from x."""
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def pointing_down(yaw: float) -> np.ndarray:
    """float64 (3, 3): `DOWN` turned by an angle in rad about z."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]]) @ DOWN


def yaw_to_open_along(angle: float) -> float:
    """The turn of `DOWN` in [-pi/2, pi/2) with which the fingers open along a direction.

    A gripper is the same again after half a turn.
    """
    turn = angle - np.pi / 2
    return (turn + np.pi / 2) % np.pi - np.pi / 2


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """float64 (3): axis times angle in rad of a rotation (3, 3) of less than half a turn."""
    skew = (rotation - rotation.T) / 2
    sine = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    # The sine of the angle, which is less than half a turn.
    norm = np.linalg.norm(sine)
    if norm == 0.0:
        return np.zeros(3)
    # `arctan2` is exact near 0, where the arc cosine loses digits.
    return sine / norm * np.arctan2(norm, (np.trace(rotation) - 1) / 2)


# --- grasps


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
