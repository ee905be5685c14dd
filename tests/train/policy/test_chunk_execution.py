import numpy as np
import pytest

from pipeline.errors import UserError
from train.policy.chunk_execution import FirstActions, TemporalEnsemble, make_execution


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
    assert len(make_execution(8)(eight)) == 8
    assert len(make_execution(8, execute_horizon=3)(eight)) == 3
    assert len(make_execution(8, ensemble=0.1)(eight)) == 1
    for horizon in (0, 9):
        with pytest.raises(UserError, match=rf"expected 1 to 8, .*; found {horizon}"):
            make_execution(8, execute_horizon=horizon)
    for ensemble, horizon in ((-0.1, None), (np.nan, None), (np.inf, None), (0.1, 2)):
        with pytest.raises(UserError, match="expected a finite decay of at least 0, and no exec"):
            make_execution(8, horizon, ensemble)
