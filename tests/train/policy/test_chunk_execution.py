import dataclasses

import numpy as np
import pytest

from pipeline.data.conventions import Conventions
from pipeline.errors import UserError
from train.policy.chunk_execution import FirstActions, TemporalEnsemble, make_execution

CHANGES = Conventions("upright", "axis_angle", 20.0, "kept")


def chunk(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)[:, None]


def test_the_first_actions_of_a_chunk_are_executed():
    assert FirstActions(2)(chunk(1, 2, 3)).tolist() == [[1], [2]]
    with pytest.raises(UserError, match="num_actions: expected at least 1; found 0"):
        FirstActions(0)
    with pytest.raises(UserError, match=r"num_actions: expected at most 3, .*; found 4"):
        FirstActions(4)(chunk(1, 2, 3))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (0.0, [1, 3, 5, 8]),
        (np.log(2), [1, 8 / 3, (3 * 4 + 5 * 2 + 7) / 7, (6 * 4 + 8 * 2 + 10) / 7]),
        (50.0, [1, 2, 3, 6]),  # the oldest alone
    ],
)
def test_an_ensemble_averages_what_all_chunks_say_of_a_step(decay, expected):
    ensemble = TemporalEnsemble(decay)
    chunks = [chunk(*range(first, first + 3)) for first in (1, 4, 7, 10)]
    found = [ensemble(one) for one in chunks]
    assert [one.shape for one in found] == [(1, 1)] * 4
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(np.concatenate(found)[:, 0], expected, rtol=1e-6)


def test_an_execution_is_made_of_flags():
    eight = chunk(*range(8))
    assert len(make_execution(8, CHANGES)(eight)) == 8
    assert len(make_execution(8, CHANGES, execute_horizon=3)(eight)) == 3
    assert len(make_execution(8, CHANGES, ensemble=0.1)(eight)) == 1
    for horizon in (0, 9):
        with pytest.raises(UserError, match=rf"expected 1 to 8, .*; found {horizon}"):
            make_execution(8, CHANGES, execute_horizon=horizon)
    for ensemble, horizon in ((-0.1, None), (np.nan, None), (np.inf, None), (0.1, 2)):
        with pytest.raises(UserError, match="expected a finite decay of at least 0, and no exec"):
            make_execution(8, CHANGES, horizon, ensemble)


@pytest.mark.parametrize("rotation", ["axis_angle", "euler_xyz", "quaternion_wxyz"])
def test_poses_whose_numbers_jump_are_not_averaged(rotation):
    poses = dataclasses.replace(CHANGES, rotation=rotation, target_poses=True)
    assert len(make_execution(8, poses)(chunk(*range(8)))) == 8
    with pytest.raises(
        UserError, match=rf"ensemble: .* rot6d or .*; found target poses with rotation {rotation}:"
    ):
        make_execution(8, poses, ensemble=0.1)
    for mean in ({"rotation": "rot6d"}, {"rotation": "none"}, {"target_poses": False}):
        made = make_execution(8, dataclasses.replace(poses, **mean), ensemble=0.1)
        assert len(made(chunk(*range(8)))) == 1
