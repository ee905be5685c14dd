"""A camera at the origin that looks along -z with a view of 90 degrees, and boxes of side 2."""

import types
from typing import Any

import numpy as np
import pytest

from train.evaluate.libero.scene.unseen_geoms import BOX, PLANE, unseen_geoms, unseen_left_out

MESH = 7
AHEAD, BEHIND, LEFT = (0, 0, -5), (0, 0, 5), (-9, 0, -5)


def scene(*places: tuple[float, ...]) -> tuple[Any, Any]:
    """A model and data with one mesh at each place."""
    n = len(places)
    model = types.SimpleNamespace(
        geom_aabb=np.tile([0.0, 0, 0, 1, 1, 1], (n, 1)),
        geom_type=np.full(n, MESH),
        geom_matid=np.full(n, -1),
        geom_group=np.ones(n, int),
        mat_reflectance=np.array([0.0, 0.5]),
        light_castshadow=np.zeros(2, bool),
        cam_fovy=np.array([90.0]),
    )
    data = types.SimpleNamespace(
        geom_xpos=np.array(places, float),
        geom_xmat=np.tile(np.eye(3).ravel(), (n, 1)),
        cam_xpos=np.zeros((1, 3)),
        cam_xmat=np.eye(3).reshape(1, 9),
    )
    return model, data


def unseen(model: Any, data: Any, aspect: float = 1.0) -> list[bool]:
    return unseen_geoms(model, data, np.ones(len(model.geom_type), bool), 0, aspect).tolist()


@pytest.mark.parametrize(
    ("place", "is_unseen"),
    [
        (AHEAD, False),
        (BEHIND, True),
        ((0, 0, 0.5), False),  # around the camera
        (LEFT, True),
        ((6.9, 0, -5), False),  # its near corner is at 5.9 of 6 at the far side
        ((7.1, 0, -5), True),
        ((0, 6.9, -5), False),
        ((0, 7.1, -5), True),
        ((0, -7.1, -5), True),
    ],
)
def test_a_geom_is_unseen_if_its_box_is_beyond_one_side(
    place: tuple[float, ...], *, is_unseen: bool
) -> None:
    assert unseen(*scene(place)) == [is_unseen]


def test_a_wide_image_sees_more_to_the_sides() -> None:
    model, data = scene((9, 0, -5), (0, 9, -5))
    assert unseen(model, data) == [True, True]
    assert unseen(model, data, aspect=2.0) == [False, True]


def test_the_box_turns_with_its_geom_and_the_view_with_the_camera() -> None:
    model, data = scene((7.3, 0, -5))
    turned = np.array([[1, -1, 0], [1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    assert unseen(model, data) == [True]
    data.geom_xmat[0] = turned.ravel()  # a corner points to the camera's axis
    assert unseen(model, data) == [False]
    data.cam_xmat[0] = np.diag([-1, 1, -1]).ravel()  # looks back
    assert unseen(model, data) == [True]


@pytest.mark.parametrize(("kind", "hides"), [(BOX, False), (PLANE, False), (MESH, True)])
def test_a_mirror_in_view_may_show_what_is_outside(kind: int, *, hides: bool) -> None:
    model, data = scene(AHEAD, BEHIND)
    model.geom_type[0], model.geom_matid[0] = kind, 1
    assert unseen(model, data) == [False, hides]
    model.geom_matid[0] = 0  # a material that does not reflect
    assert unseen(model, data) == [False, True]


def test_a_mirror_that_is_not_in_view_shows_nothing() -> None:
    model, data = scene(AHEAD, BEHIND, LEFT)
    model.geom_type[1:], model.geom_matid[1:] = BOX, 1
    assert unseen(model, data) == [False, True, True]


def test_nothing_is_unseen_where_a_light_casts_shadows() -> None:
    model, data = scene(AHEAD, BEHIND)
    model.light_castshadow[1] = True
    assert unseen(model, data) == [False, False]


def test_a_plane_has_no_bounds() -> None:
    model, data = scene(BEHIND)
    model.geom_type[0] = PLANE
    assert unseen(model, data) == [False]


def test_groups_are_those_of_before_after_an_image() -> None:
    model, data = scene(AHEAD, BEHIND, LEFT)
    model.geom_group[:] = [1, 1, 2]
    options = types.SimpleNamespace(geomgroup=np.array([0, 1, 1, 0, 0, 0], np.uint8))
    with unseen_left_out(model, data, options, camera=0, aspect=1.0):
        assert model.geom_group.tolist() == [1, 0, 0]
    assert model.geom_group.tolist() == [1, 1, 2]


def test_a_mirror_that_is_not_drawn_shows_nothing() -> None:
    model, data = scene(AHEAD, BEHIND)
    model.geom_type[0], model.geom_matid[0], model.geom_group[0] = BOX, 1, 0
    options = types.SimpleNamespace(geomgroup=np.array([0, 1, 1, 0, 0, 0], np.uint8))
    with unseen_left_out(model, data, options, camera=0, aspect=1.0):
        assert model.geom_group.tolist() == [0, 0]
    assert model.geom_group.tolist() == [0, 1]
