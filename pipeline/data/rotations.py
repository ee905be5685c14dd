"""Rotations between their representations, and poses relative to each other.

Every function is pure, computes in float64 and rounds once, to the dtype of its input (float64 for
integers). Any number of leading axes is allowed, none included.

| representation             | values | what                                                       |
| -------------------------- | ------ | ---------------------------------------------------------- |
| `axis_angle`               | 3      | axis times angle in radians, the angle in [0, pi]          |
| `euler_xyz`, ...           | 3      | radians about FIXED axes, in this order: xyz is            |
|                            |        | R = Rz Ry Rx, what "roll, pitch, yaw" mostly means         |
| `euler_intrinsic_xyz`, ... | 3      | radians about axes that move with the body: xyz is         |
|                            |        | R = Rx Ry Rz                                               |
| `quaternion_xyzw`, `_wxyz` | 4      | unit quaternion, the real part last or first; q and -q     |
|                            |        | are the same rotation                                      |
| `matrix`                   | 9      | rows of the 3x3 matrix that acts on column vectors         |
| `rot6d`                    | 6      | its first column, then its second                          |
| `rot6d_rows`               | 6      | its first row, then its second                             |

Angles are in radians, in [-pi, pi], the middle one of three in [-pi/2, pi/2]. Where the middle one
is +-pi/2 (gimbal lock) the first and third are not unique: then the later of the two elementary
rotations about moving axes gets the angle 0. A rotation by exactly pi has two axis-angle vectors.

Source: scipy's `Rotation` for everything but 6-D values; Zhou et al., "On the Continuity of
Rotation Representations in Neural Networks" (2019), equation 8, for those.
"""

import warnings
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

Representation = Literal[
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "matrix",
    "rot6d",
    "rot6d_rows",
    "euler_xyz",
    "euler_xzy",
    "euler_yxz",
    "euler_yzx",
    "euler_zxy",
    "euler_zyx",
    "euler_intrinsic_xyz",
    "euler_intrinsic_xzy",
    "euler_intrinsic_yxz",
    "euler_intrinsic_yzx",
    "euler_intrinsic_zxy",
    "euler_intrinsic_zyx",
]
"""How a rotation is written in numbers."""

_NUM_VALUES = {
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "matrix": 9,
    "rot6d": 6,
    "rot6d_rows": 6,
}
_SMALLEST_NORM = 1e-12
"""Below it a vector has no direction."""


def num_values(representation: Representation) -> int:
    """Returns how many numbers one rotation has: 3, 4, 6 or 9."""
    return _NUM_VALUES.get(representation, 3)


def convert_rotation(
    values: np.ndarray, source: Representation, target: Representation
) -> np.ndarray:
    """Returns the same rotations in another representation.

    Args:
      values: (..., n), n as `num_values` gives for `source`. Quaternions of any norm but 0, 6-D
        values and matrices that are not quite orthonormal are normalised first.
      source: The representation of `values`.
      target: The representation that is returned.

    Returns:
      (..., m), in the floating dtype of `values`.

    Raises:
      ValueError: The last axis has another size, or a value is no rotation: not finite, a
        quaternion of norm 0, or 6-D values whose two vectors are parallel.
    """
    return _rounded(_write(_read(values, source), target), values)


def to_matrix(values: np.ndarray, representation: Representation) -> np.ndarray:
    """Returns the matrices of rotations, (..., 3, 3); they act on column vectors.

    Args:
      values: (..., n), n as `num_values` gives.
      representation: The representation of `values`.

    Raises:
      ValueError: As `convert_rotation`.
    """
    flat = convert_rotation(values, representation, "matrix")
    return flat.reshape(*flat.shape[:-1], 3, 3)


def from_matrix(matrices: np.ndarray, representation: Representation) -> np.ndarray:
    """Inverts `to_matrix`: (..., 3, 3) becomes (..., n).

    Raises:
      ValueError: The last axes are not 3 and 3, or a value is not finite.
    """
    if np.shape(matrices)[-2:] != (3, 3):
        raise ValueError(f"matrices must be (..., 3, 3), not {np.shape(matrices)}")
    flat = np.reshape(matrices, (*np.shape(matrices)[:-2], 9))
    return convert_rotation(flat, "matrix", representation)


def rotation_angle(
    first: np.ndarray, second: np.ndarray, representation: Representation
) -> np.ndarray:
    """Returns the angle of the rotation from one to another, in radians, (...), in [0, pi].

    It is what two rotations are compared by: angles and quaternions of one rotation may differ.

    Args:
      first: (..., n).
      second: (..., n), of the same shape.
      representation: The representation of both.

    Raises:
      ValueError: As `convert_rotation`.
    """
    between = _multiplied(_inverse(_read(first, representation)), _read(second, representation))
    axis_angle = _write(between, "axis_angle")
    return _rounded(np.linalg.norm(axis_angle, axis=-1), first)


def relative_rotation(
    now: np.ndarray,
    future: np.ndarray,
    representation: Representation,
    frame: Literal["tool", "base"] = "tool",
) -> np.ndarray:
    """Returns the rotation that leads from one orientation to another, (..., n).

    Args:
      now: (..., n), orientations in the base's frame.
      future: (..., n), those that are to be reached; both broadcast.
      representation: The representation of both, and of the result.
      frame: `tool`: seen from the first, R_now^T R_future; `base`: R_future R_now^T.

    Raises:
      ValueError: As `convert_rotation`.
    """
    first, second = _read(now, representation), _read(future, representation)
    inverse = _inverse(first)
    between = _multiplied(*((inverse, second) if frame == "tool" else (second, inverse)))
    return _rounded(_write(between, representation), future)


def relative_position(
    now_position: np.ndarray,
    future_position: np.ndarray,
    now_rotation: np.ndarray,
    representation: Representation,
) -> np.ndarray:
    """Returns positions seen from a pose: R_now^T (p_future - p_now), (..., 3).

    With `relative_rotation` in the tool's frame it is the pose T_now^-1 T_future.

    Args:
      now_position: (..., 3) of the pose, in the base's frame.
      future_position: (..., 3), in the same frame and unit.
      now_rotation: (..., n), orientation of the pose.
      representation: The representation of `now_rotation`.

    Raises:
      ValueError: As `convert_rotation`.
    """
    moved = np.asarray(future_position, np.float64) - np.asarray(now_position, np.float64)
    seen = _rotated(_inverse(_read(now_rotation, representation)), moved)
    return _rounded(seen, future_position)


def absolute_rotation(
    now: np.ndarray,
    relative: np.ndarray,
    representation: Representation,
    frame: Literal["tool", "base"] = "tool",
) -> np.ndarray:
    """Inverts `relative_rotation`: returns the orientation that it leads to, (..., n).

    Args:
      now: (..., n), orientations in the base's frame.
      relative: (..., n), rotations from there; both broadcast.
      representation: The representation of both, and of the result.
      frame: `tool`: R_now R_relative; `base`: R_relative R_now.

    Raises:
      ValueError: As `convert_rotation`.
    """
    first, second = _read(now, representation), _read(relative, representation)
    reached = _multiplied(*((first, second) if frame == "tool" else (second, first)))
    return _rounded(_write(reached, representation), relative)


def absolute_position(
    now_position: np.ndarray,
    relative: np.ndarray,
    now_rotation: np.ndarray,
    representation: Representation,
) -> np.ndarray:
    """Inverts `relative_position`: returns p_now + R_now p_relative, (..., 3).

    With `absolute_rotation` in the tool's frame it is the pose T_now T_relative.

    Args:
      now_position: (..., 3) of the pose, in the base's frame.
      relative: (..., 3), as seen from the pose, in the same unit.
      now_rotation: (..., n), orientation of the pose.
      representation: The representation of `now_rotation`.

    Raises:
      ValueError: As `convert_rotation`.
    """
    seen = np.asarray(relative, np.float64)
    moved = _rotated(_read(now_rotation, representation), seen)
    return _rounded(np.asarray(now_position, np.float64) + moved, relative)


def _rounded(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The values in the dtype of the input, where that is a floating one."""
    dtype = np.asarray(like).dtype
    # Kind "f" leaves integers out, and bfloat16, whose kind is "V".
    return values.astype(dtype if dtype.kind == "f" else np.float64)


# --- through unit quaternions x y z w, float64 (..., 4)


def _read(values: np.ndarray, representation: Representation) -> np.ndarray:
    """Quaternions of rotations."""
    exact = np.asarray(values, np.float64)
    expected = num_values(representation)
    if exact.shape[-1:] != (expected,):
        raise ValueError(
            f"{representation} has {expected} values on the last axis, not {exact.shape}"
        )
    if not np.isfinite(exact).all():
        raise ValueError(f"{representation} must be finite")
    # scipy takes one leading axis, and no empty one everywhere.
    rows = exact.reshape(-1, expected)
    read = _parsed(rows, representation).as_quat() if len(rows) else np.zeros((0, 4))
    return read.reshape(*exact.shape[:-1], 4)


def _parsed(rows: np.ndarray, representation: Representation) -> Rotation:
    """Rotations of (n, values)."""
    match representation:
        case "axis_angle":
            return Rotation.from_rotvec(rows)
        case "matrix":
            return Rotation.from_matrix(rows.reshape(-1, 3, 3))  # the nearest orthonormal ones
        case "quaternion_xyzw" | "quaternion_wxyz":
            if np.linalg.norm(rows, axis=1).min() < _SMALLEST_NORM:
                raise ValueError(f"{representation} of norm 0 is no rotation")
            is_last = representation == "quaternion_xyzw"
            return Rotation.from_quat(rows if is_last else np.roll(rows, -1, axis=1))
        case "rot6d":
            return Rotation.from_matrix(_orthonormal(rows).swapaxes(-1, -2))
        case "rot6d_rows":
            return Rotation.from_matrix(_orthonormal(rows))
        case _:
            return Rotation.from_euler(_axes(representation), rows)


def _write(quaternions: np.ndarray, representation: Representation) -> np.ndarray:
    """Inverts `_read`."""
    rows = quaternions.reshape(-1, 4)
    size = num_values(representation)
    written = _values(rows, representation) if len(rows) else np.zeros((0, size))
    return written.reshape(*quaternions.shape[:-1], size)


def _values(quaternions: np.ndarray, representation: Representation) -> np.ndarray:
    """(n, values) of (n, 4)."""
    rotation = Rotation.from_quat(quaternions)
    match representation:
        case "axis_angle":
            return rotation.as_rotvec()
        case "matrix":
            return rotation.as_matrix().reshape(-1, 9)
        case "quaternion_xyzw":
            return quaternions
        case "quaternion_wxyz":
            return np.roll(quaternions, 1, axis=1)
        case "rot6d":
            return rotation.as_matrix()[:, :, :2].swapaxes(-1, -2).reshape(-1, 6)
        case "rot6d_rows":
            return rotation.as_matrix()[:, :2].reshape(-1, 6)
        case _:
            with warnings.catch_warnings():
                # The angles there are a right answer, only not the one right answer.
                warnings.filterwarnings("ignore", message="Gimbal lock detected")
                return rotation.as_euler(_axes(representation))


def _multiplied(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Quaternions of the rotations R_first R_second; both (..., 4), which broadcast."""
    v, w = first[..., :3], first[..., 3:]
    u, s = second[..., :3], second[..., 3:]
    vector = w * u + s * v + np.cross(v, u)
    return np.concatenate([vector, w * s - (v * u).sum(axis=-1, keepdims=True)], axis=-1)


def _inverse(quaternions: np.ndarray) -> np.ndarray:
    return quaternions * np.array([-1.0, -1.0, -1.0, 1.0])


def _rotated(quaternions: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """R v: (..., 4) and (..., 3), which broadcast."""
    v, w = quaternions[..., :3], quaternions[..., 3:]
    twice = 2 * np.cross(v, vectors)
    return vectors + w * twice + np.cross(v, twice)


def _axes(representation: Representation) -> str:
    """The order of axes for scipy: small letters for fixed ones, capitals for moving ones."""
    order = representation.rpartition("_")[2]
    return order.upper() if "intrinsic" in representation else order


def _orthonormal(rows: np.ndarray) -> np.ndarray:
    """(n, 3, 3) whose first two rows are the two vectors of (n, 6), made orthonormal.

    Gram-Schmidt: the first keeps its direction, the third is their cross product.
    """
    first, second = rows[:, :3], rows[:, 3:]
    x = _unit(first)
    # The part of the second vector that is perpendicular to the first.
    y = _unit(second - (x * second).sum(axis=1, keepdims=True) * x)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if norms.min() < _SMALLEST_NORM:
        raise ValueError("6-D values of two parallel vectors are no rotation")
    return vectors / norms
