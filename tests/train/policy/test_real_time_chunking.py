"""A robot that never waits: chunks take effect at their step, late ones are counted."""

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from pipeline.errors import UserError
from tests.train.octo.heads.smooth_head import CONFIG, EMBEDDING, SmoothHead
from train.octo.heads.diffusion import draw_sampling_noise
from train.octo.heads.guidance import Guide, blend, soft_mask
from train.policy import PlannedActions, RealTimeChunking
from train.policy.chunk_execution import check_delay
from train.policy.real_time_chunking import check_when_late

HORIZON, EVERY = 16, 8


class Labels:
    """Predicts actions (prediction, step of the chunk), and waits where a test holds it."""

    def __init__(self, horizon: int = HORIZON) -> None:
        self.horizon = horizon
        self.asked: list[tuple[list[Any], PlannedActions | None]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
        self.free.wait(timeout=60)
        number = len(self.asked)
        self.asked.append((list(observations), planned))
        steps = np.arange(self.horizon, dtype=np.float32)
        return np.stack([np.full_like(steps, number), steps], axis=1)


def acting(predict: Any, *, delay: int, every: int = EVERY, **options: Any) -> RealTimeChunking:
    horizon = getattr(predict, "horizon", HORIZON)
    return RealTimeChunking(
        predict, action_horizon=horizon, execute_horizon=every, delay=delay, **options
    )


def executed(act: RealTimeChunking, steps: Sequence[int]) -> list[tuple[int, ...]]:
    """The label of the action that is executed at each step, whose prediction is always on time."""
    labels = []
    for step in steps:
        act.wait()
        labels.append(tuple(act({"step": step}).astype(int).tolist()))
    return labels


@pytest.mark.parametrize("delay", range(9))
def test_a_chunk_takes_effect_exactly_at_its_delay(delay: int) -> None:
    predict = Labels()
    with acting(predict, delay=delay) as act:
        found = executed(act, range(40))
        act.wait()
    # Prediction k is asked at step 8 k, and its action number i is for step 8 k + i.
    numbers = [max(0, (step - delay) // EVERY) for step in range(40)]
    assert found == [(k, step - EVERY * k) for step, k in enumerate(numbers)]
    for k, (observations, planned) in enumerate(predict.asked):
        assert observations == [{"step": EVERY * k}]
        if k == 0:
            assert planned is None
            continue
        assert (planned.delay, planned.actions.shape) == (delay, (HORIZON - EVERY, 2))
        # The last chunk's actions from this step on.
        np.testing.assert_array_equal(planned.actions[:, 0], k - 1)
        np.testing.assert_array_equal(planned.actions[:, 1], range(EVERY, HORIZON))
    assert act.num_late == 0


class Sampled:
    """Predicts chunks by a head in the model's space, guided or blended, and keeps them."""

    def __init__(self, head: str) -> None:
        key, module = jax.random.key(0), SmoothHead(CONFIG)

        @jax.jit
        def sample(count: int, guide: Guide) -> Any:
            noise = draw_sampling_noise(CONFIG, jax.random.fold_in(key, count), (1, 1))
            if head == "diffusion":
                return module.apply({}, EMBEDDING, noise, guide, method="sample_guided")
            return blend(module.apply({}, EMBEDDING, noise, method="sample"), guide)

        self._sample = sample
        self.chunks: list[np.ndarray] = []

    def __call__(self, observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
        target = np.zeros((1, HORIZON, 2), np.float32)
        weights = np.zeros_like(target)
        if planned is not None:
            target[:, :EVERY] = planned.actions
            weights[...] = soft_mask(HORIZON, len(planned.actions), planned.delay)[:, None]
        self.chunks.append(np.asarray(self._sample(len(self.chunks), Guide(target, weights)))[0])
        return self.chunks[-1]


@pytest.mark.parametrize("head", ["diffusion", "regression"])
def test_a_plant_gets_an_action_at_every_step_and_every_committed_one(head: str) -> None:
    predict = Sampled(head)
    for delay in range(9):
        predict.chunks.clear()
        position, moved = np.zeros(2), []
        with acting(predict, delay=delay, when_late="wait") as act:
            for _ in range(60):
                moved.append(act({"position": position}))
                position = position + moved[-1]
            act.wait()
        assert len(moved) == 60
        chunks = predict.chunks
        assert len(chunks) == 8
        for last, chunk in itertools.pairwise(chunks):
            committed = last[EVERY : EVERY + delay]
            np.testing.assert_allclose(chunk[:delay], committed, atol=1e-6, rtol=0)
        # So the plant moved by the first actions of every chunk, but for the last prediction's.
        wanted = np.concatenate([chunk[:EVERY] for chunk in chunks[:7]])
        np.testing.assert_allclose(moved[:56], wanted, atol=1e-6)


def test_a_late_chunk_is_counted_and_the_last_one_executed_further() -> None:
    predict = Labels()
    with acting(predict, delay=2) as act:
        found = executed(act, range(8))
        predict.free.clear()
        # Asked at step 8, due at step 10, ready before step 13: actions 10 to 12 are the old ones.
        found += [tuple(act({"step": step}).astype(int).tolist()) for step in range(8, 13)]
        assert act.num_late == 3
        predict.free.set()
        found += executed(act, range(13, 20))
    assert found[:13] == [(0, step) for step in range(13)]
    # Action 5 of the new chunk is for step 13; the next is asked at step 16, due at step 18.
    assert found[13:] == [(1, step - 8) for step in range(13, 18)] + [(2, 2), (2, 3)]
    assert act.num_late == 3


def test_a_chunk_that_is_later_than_the_next_prediction_is_followed_at_once() -> None:
    predict = Labels()
    with acting(predict, delay=1, every=4) as act:
        found = executed(act, range(4))
        predict.free.clear()
        found += [tuple(act({"step": step}).astype(int).tolist()) for step in range(4, 10)]
        predict.free.set()
        found += executed(act, range(10, 12))
    assert found == [(0, step) for step in range(10)] + [(1, 6), (2, 1)]
    # At step 10 the chunk of step 4 took effect, and the next was asked with what is left of it.
    assert predict.asked[2][1].actions[:, 1].tolist() == [*range(6, HORIZON)]
    # What was seen in between is not lost on a longer window.
    assert predict.asked[2][0] == [{"step": 10}]


def test_a_prediction_that_is_longer_than_the_chunk_is_an_error() -> None:
    predict = Labels(horizon=6)
    with acting(predict, delay=1, every=3) as act:
        executed(act, range(3))
        predict.free.clear()
        for step in range(3, 6):
            act({"step": step})
        for _ in range(2):
            with pytest.raises(UserError) as caught:
                act({"step": 6})
            assert caught.value.expected == "a prediction within 1 steps, the delay"
            assert caught.value.found == "none after 3 steps, and the last chunk has ended"
        assert act.num_late == 2
        predict.free.set()
        assert executed(act, [6]) == [(1, 3)]


def test_delays_that_cannot_be_are_reported() -> None:
    for delay, every, horizon, most in ((5, 4, 16, 4), (5, 12, 16, 4), (-1, 8, 16, 8)):
        with pytest.raises(UserError) as caught:
            RealTimeChunking(Labels(), action_horizon=horizon, execute_horizon=every, delay=delay)
        assert caught.value.where == "delay"
        assert caught.value.expected.startswith(f"0 to {most} steps: a chunk of 16 is predicted")
        assert caught.value.found == str(delay)
        assert "an execute_horizon of 8" in caught.value.remedy
    with pytest.raises(UserError, match="expected 1 to 16, the actions of a chunk; found 17"):
        acting(Labels(), delay=0, every=17)
    # A robot would move before a float is noticed, and an unknown word would mean "continue".
    with pytest.raises(UserError, match=r"a whole number of steps, as an int; found float 2\.0"):
        check_delay(2.0, EVERY, HORIZON)
    with pytest.raises(UserError, match='expected "continue" or "wait"; found \'later\''):
        check_when_late("later")
    with (
        RealTimeChunking(Labels(4), action_horizon=16, execute_horizon=8, delay=2) as act,
        pytest.raises(UserError, match=r"a chunk of 16 actions, \(h a\); found float32\[4, 2\]"),
    ):
        act({})


def test_an_error_of_a_prediction_is_raised_when_it_should_take_effect() -> None:
    predict = Labels()

    def failing(observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
        chunk = predict(observations, planned)
        if len(predict.asked) == 2:
            raise ValueError("no camera")
        return chunk

    with acting(failing, delay=2) as act:
        assert executed(act, range(10)) == [(0, step) for step in range(10)]
        with pytest.raises(ValueError, match="no camera"):
            executed(act, [10])
        # The robot may continue: what is left of the last chunk, and another prediction.
        assert executed(act, [10, 11]) == [(0, 10), (0, 11)]
        assert executed(act, [12]) == [(2, 2)]


@pytest.mark.parametrize("delay", [5, 8])
def test_another_prediction_is_waited_for_where_too_little_is_left_after_an_error(
    delay: int,
) -> None:
    predict = Labels()

    def failing(observations: Sequence[Any], planned: PlannedActions | None) -> np.ndarray:
        chunk = predict(observations, planned)
        if len(predict.asked) == 2:
            raise ValueError("no camera")
        return chunk

    due = EVERY + delay
    with acting(failing, delay=delay, num_observed=3) as act:
        assert executed(act, range(due)) == [(0, step) for step in range(due)]
        with pytest.raises(ValueError, match="no camera"):
            executed(act, [due])
        # Of 16 actions 3 and 0 are left, and none could be executed while a chunk is predicted.
        assert executed(act, [due, due + 1]) == [(2, 0), (2, 1)]
    # The step of the error is in the window once.
    assert predict.asked[2] == ([{"step": due - 2 + n} for n in range(3)], None)


def test_a_window_sees_the_steps_since_the_last_prediction_in_arrays_of_its_own() -> None:
    predict = Labels()
    buffer = np.zeros(1)
    with acting(predict, delay=2, num_observed=3) as act:
        for step in range(17):
            buffer[0] = step
            act({"state": buffer})
            act.wait()
    seen = [[one["state"][0] for one in observations] for observations, _ in predict.asked]
    assert seen == [[0], [6, 7, 8], [14, 15, 16]]


def test_another_task_begins_without_a_plan_and_keeps_what_was_observed() -> None:
    predict = Labels()
    with acting(predict, delay=2, num_observed=3) as act:
        executed(act, range(11))
        act.drop_plan()
        assert executed(act, [11, 12]) == [(2, 0), (2, 1)]
    assert predict.asked[2] == ([{"step": step} for step in (9, 10, 11)], None)


def test_another_episode_begins_without_a_plan_and_after_the_running_prediction() -> None:
    predict = Labels()
    with acting(predict, delay=2) as act:
        executed(act, range(8))
        predict.free.clear()
        act({"step": 8})
        threading.Timer(0.05, predict.free.set).start()
        act.reset()
        assert len(predict.asked) == 2
        assert executed(act, range(2)) == [(2, 0), (2, 1)]
    assert predict.asked[2] == ([{"step": 0}], None)
