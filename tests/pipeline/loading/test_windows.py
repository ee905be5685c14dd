import pathlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from pipeline.loading.samples.windows import (
    action_mask,
    chunk_indices,
    history_indices,
    octo_action_mask,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "data"
SIZES = st.integers(1, 40)


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
    steps, lengths = np.array([[step]]), np.array([length])
    np.testing.assert_array_equal(chunk_indices(steps, lengths, horizon), [[indices]])
    np.testing.assert_array_equal(action_mask(steps, lengths, horizon), [[mask]])


@pytest.mark.parametrize(
    ("step", "goal", "mask"),
    [
        (3, 9, [True, True, True]),
        (3, 5, [True, True, False]),
        (3, 4, [True, False, False]),
        (3, 3, [False, False, False]),
    ],
)
def test_actions_from_the_goal_on_do_not_count(step: int, goal: int, mask: list) -> None:
    found = action_mask(np.array([[step]]), np.array([goal]), 3)
    np.testing.assert_array_equal(found, [[mask]])


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


@settings(max_examples=100)
@given(lengths=st.lists(SIZES, min_size=1, max_size=4), window=SIZES, horizon=SIZES, data=st.data())
def test_windows_are_those_of_plain_loops(
    lengths: list[int], window: int, horizon: int, data: st.DataObject
) -> None:
    t = [data.draw(st.integers(0, length - 1)) for length in lengths]
    history, history_mask = history_indices(np.array(t), window)
    chunk = chunk_indices(history, np.array(lengths), horizon)
    chunk_mask = action_mask(history, np.array(lengths), horizon)
    expected = [
        loops(length, step, window, horizon) for length, step in zip(lengths, t, strict=True)
    ]
    for number, array in enumerate((history, history_mask, chunk, chunk_mask)):
        plain = [[slot[number] for slot in sample] for sample in expected]
        np.testing.assert_array_equal(array, plain)


@settings(max_examples=100)
@given(length=SIZES, window=SIZES, horizon=SIZES, data=st.data())
def test_mask_of_the_original_ends_later_by_two_steps_after_a_goal_and_by_one_at_the_end(
    length: int, window: int, horizon: int, data: st.DataObject
) -> None:
    t = np.arange(length)
    goal = np.array([data.draw(st.integers(step, length - 1)) for step in range(length)])
    history, real = history_indices(t, window)
    original = octo_action_mask(t, goal, window, horizon)[real]
    np.testing.assert_array_equal(original, action_mask(history, goal + 2, horizon)[real])
    at_the_end = octo_action_mask(t, np.full(length, length - 1), window, horizon)[real]
    ends = np.full(length, length + 1)
    np.testing.assert_array_equal(at_the_end, action_mask(history, ends, horizon)[real])


@pytest.mark.parametrize("name", ["short", "w1h1", "w2h4_goal", "w2h4_goal_nolang", "w2h4_lang"])
def test_trajectories_are_chunked_as_the_original_does(name: str) -> None:
    """The recorded stages of Octo: history, chunks and its own mask, bitwise identical."""
    with np.load(GOLDEN / f"traj_{name}.npz") as stored:
        arrays = dict(stored)
    length, window, horizon = (
        len(arrays["in/action"]),
        *arrays["5_chunk/observation/task_completed"].shape[1:],
    )
    t, lengths = np.arange(length), np.full(length, length)
    history, real = history_indices(t, window)
    np.testing.assert_array_equal(real, arrays["5_chunk/observation/timestep_pad_mask"])
    for key in ("timestep", "proprio", "image_primary", "image_wrist"):
        stored = arrays[f"in/observation/{key}"]
        np.testing.assert_array_equal(stored[history], arrays[f"5_chunk/observation/{key}"])
    chunk = chunk_indices(history, lengths, horizon)
    np.testing.assert_array_equal(arrays["in/action"][chunk], arrays["5_chunk/action"])
    goal = arrays.get("4_delete_task/task/timestep", lengths - 1)
    mask = octo_action_mask(t, goal, window, horizon)
    np.testing.assert_array_equal(mask, ~arrays["5_chunk/observation/task_completed"])
    of_dims = np.broadcast_to(mask[..., None], arrays["5_chunk/action_pad_mask"].shape)
    np.testing.assert_array_equal(of_dims, arrays["5_chunk/action_pad_mask"])
