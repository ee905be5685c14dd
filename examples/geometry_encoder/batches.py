"""Batches of views: one, two or three of a moment, as a training step or an evaluation reads them.

One view is a third-person one. More views are third-person ones and then the hand's, in the order
in which `octograin tokens --cameras primary,wrist --views joint` has them.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from examples.geometry_encoder.cameras import Cameras
from examples.geometry_encoder.view_sets import ViewSets

NUM_VIEWS = (1, 2, 3)
"""Numbers of views that a batch may have."""
WRIST = -1
"""Number of the hand's view."""


class Batch(NamedTuple):
    """Views of some moments."""

    images: np.ndarray
    """uint8 (b, v, y, x, 3)."""
    depth_mm: np.ndarray
    """uint16 (b, v, y, x)."""
    pose: np.ndarray
    """float32 (b, v, 8): relative to the first view."""


def draw_batch(sets: ViewSets, rng: np.random.Generator, num_images: int) -> Batch:
    """A random batch of about as many images, whatever the number of views."""
    num_views = int(rng.choice(NUM_VIEWS))
    num_sets, num_held = sets.images.shape[:2]
    rows = rng.integers(num_sets, size=num_images // num_views)
    # Different third-person views, in random order.
    third = rng.permuted(np.tile(np.arange(num_held - 1), (len(rows), 1)), axis=1)
    views = third[:, : max(num_views - 1, 1)]
    if num_views > 1:
        views = np.concatenate([views, np.full((len(rows), 1), WRIST)], axis=1)
    return choose(sets, rows, views)


def choose(sets: ViewSets, rows: np.ndarray, views: np.ndarray) -> Batch:
    """Some views of some moments.

    Args:
      sets: The sets.
      rows: int (b): the moments.
      views: int (b, v), or (v) for the same of all: the views of each.
    """
    place = (rows[:, None], np.broadcast_to(views, (len(rows), views.shape[-1])))
    cameras = Cameras(
        *(getattr(sets.cameras, field.name)[place] for field in dataclasses.fields(Cameras))
    )
    first = Cameras(cameras.rotation[:, :1], cameras.translation[:, :1], cameras.fov_y[:, :1])
    pose = cameras.relative_to(first).encoded().astype(np.float32)
    return Batch(sets.images[place], sets.depth_mm[place], pose)
