import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.windows import chunk_indices, history_indices


@pytest.mark.parametrize(
    ("t", "window_size", "indices", "mask"),
    [
        (0, 1, [0], [True]),
        (0, 3, [0, 0, 0], [False, False, True]),
        (1, 3, [0, 0, 1], [False, True, True]),
        (5, 3, [3, 4, 5], [True, True, True]),
    ],
)
def test_history_ends_at_t_and_repeats_the_first_step(
    t: int, window_size: int, indices: list, mask: list
) -> None:
    found, real = history_indices(np.array([t]), window_size)
    np.testing.assert_array_equal(found, [indices])
    np.testing.assert_array_equal(real, [mask])
    assert real.dtype == bool


@pytest.mark.parametrize(
    ("step", "length", "horizon", "indices", "mask"),
    [
        (3, 6, 3, [3, 4, 5], [True, True, True]),
        (4, 6, 3, [4, 5, 5], [True, True, False]),
        (5, 6, 3, [5, 5, 5], [True, False, False]),
        (0, 1, 4, [0, 0, 0, 0], [True, False, False, False]),
        (0, 2, 1, [0], [True]),
    ],
)
def test_chunk_starts_at_its_step_and_repeats_the_last_action(
    step: int, length: int, horizon: int, indices: list, mask: list
) -> None:
    found, real = chunk_indices(np.array([[step]]), np.array([length]), horizon)
    np.testing.assert_array_equal(found, [[indices]])
    np.testing.assert_array_equal(real, [[mask]])


def loops(length: int, t: int, window: int, horizon: int) -> list[tuple]:
    """(step, real, actions, real actions) of each slot, one at a time."""
    slots = []
    for slot in range(window):
        step = t - (window - 1 - slot)
        start = step if step >= 0 else 0
        actions, real = [], []
        for offset in range(horizon):
            action = start + offset
            actions.append(action if action < length else length - 1)
            real.append(action < length)
        slots.append((start, step >= 0, actions, real))
    return slots


SIZES = st.integers(1, 40)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(lengths=st.lists(SIZES, min_size=1, max_size=4), window=SIZES, horizon=SIZES, data=st.data())
def test_windows_are_those_of_plain_loops(
    lengths: list[int], window: int, horizon: int, data: st.DataObject
) -> None:
    t = [data.draw(st.integers(0, length - 1)) for length in lengths]
    history, history_mask = history_indices(np.array(t), window)
    chunk, chunk_mask = chunk_indices(history, np.array(lengths), horizon)
    expected = [
        loops(length, step, window, horizon) for length, step in zip(lengths, t, strict=True)
    ]
    arrays = (history, history_mask, chunk, chunk_mask)
    for number, array in enumerate(arrays):
        plain = [[slot[number] for slot in sample] for sample in expected]
        np.testing.assert_array_equal(array, plain)
