"""Leaves out of an image the geoms that it cannot show; its pixels stay the same.

MuJoCo draws all geoms of a scene, and mirrors all of them in a reflecting box, also one that the
camera does not see.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

PLANE, BOX = 0, 6
"""MuJoCo's numbers of the types of geoms that mirror others."""

_CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8).T
# Wider than the view by more than rounding.
_MARGIN = 1.001


@contextlib.contextmanager
def unseen_left_out(
    model: Any, data: Any, options: Any, camera: int, aspect: float
) -> Iterator[None]:
    """Hides the geoms that a camera cannot see from what is drawn inside the block.

    Args:
      model: MuJoCo's `MjModel`; inside the block, these geoms are in a group that is not drawn.
      data: Its `MjData`.
      options: The `MjvOption` that says which groups are drawn.
      camera: The camera's number.
      aspect: Width of the image by its height.
    """
    groups = model.geom_group.copy()
    drawn = np.asarray(options.geomgroup, bool)
    if not drawn.all():
        unseen = unseen_geoms(model, data, drawn[groups], camera, aspect)
        model.geom_group[unseen] = np.argmin(drawn)
    try:
        yield
    finally:
        model.geom_group[:] = groups


def unseen_geoms(
    model: Any, data: Any, is_drawn: np.ndarray, camera: int, aspect: float
) -> np.ndarray:
    """Returns bool (n): the geoms that change no pixel of a camera's image.

    They are outside its view. Outside of it a geom may still cast a shadow into it, or be seen in a
    mirror: there is none where a light casts shadows or the camera sees a geom that reflects.

    Args:
      model: MuJoCo's `MjModel`.
      data: Its `MjData`.
      is_drawn: bool (n): the geoms that are drawn at all.
      camera: The camera's number.
      aspect: Width of the image by its height.
    """
    outside = ~_in_view(model, data, camera, aspect)
    # A plane has no bounds.
    outside &= model.geom_type != PLANE
    reflects = (model.geom_matid >= 0) & np.isin(model.geom_type, (PLANE, BOX))
    reflects[reflects] = model.mat_reflectance[model.geom_matid[reflects]] > 0
    if model.light_castshadow.any() or (reflects & is_drawn & ~outside).any():
        return np.zeros_like(outside)
    return outside


def _in_view(model: Any, data: Any, camera: int, aspect: float) -> np.ndarray:
    """Returns bool (n): whether the box around a geom may reach into a camera's view."""
    centre, half = model.geom_aabb[:, None, :3], model.geom_aabb[:, None, 3:]
    # (n 8 3): from the geom's axes to the world's, then to the camera's, which looks along -z.
    corners = (centre + _CORNERS * half) @ data.geom_xmat.reshape(-1, 3, 3).transpose(0, 2, 1)
    corners += data.geom_xpos[:, None] - data.cam_xpos[camera]
    x, y, z = np.moveaxis(corners @ data.cam_xmat[camera].reshape(3, 3), -1, 0)
    top = -z * np.tan(np.radians(model.cam_fovy[camera]) / 2) * _MARGIN
    right = top * aspect
    # A box whose corners are all beyond one side is outside.
    sides = (z > 0, x > right, x < -right, y > top, y < -top)
    return ~np.any([side.all(axis=1) for side in sides], axis=0)
