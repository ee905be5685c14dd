"""Times of training steps, with a clock and devices that a test moves."""

import pathlib
from typing import Any

import pytest

from train import run_log
from train.metrics.step_metrics import StepMetrics
from train.run_log import RunLog
from train.run_setup import Setup

COMPUTE_S = 0.2
NAMES = ("loss", "grad_norm", "update_norm", "param_norm", "learning_rate", "applied")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Scalar:
    """A value that devices have at a time; reading it earlier waits until then."""

    def __init__(self, clock: Clock, ready_s: float) -> None:
        self.clock, self.ready_s = clock, ready_s

    def is_ready(self) -> bool:
        return self.clock.now_s >= self.ready_s

    def __float__(self) -> float:
        self.clock.now_s = max(self.clock.now_s, self.ready_s)
        return 1.0


def train(
    monkeypatch: pytest.MonkeyPatch, num_steps: int, *, batch_s: float, save_interval: int
) -> list[StepMetrics]:
    """The rows of a loop whose batches and training steps take as long as given."""
    clock, busy_until_s, rows = Clock(), 0.0, []
    monkeypatch.setattr(run_log.time, "perf_counter", clock)
    # The times depend on nothing of the run.
    log = RunLog(object.__new__(Setup), pathlib.Path(), 0, rows.append)
    log.start_clock()
    for step in range(1, num_steps + 1):
        with log.waiting():
            clock.now_s += batch_s
        busy_until_s = max(busy_until_s, clock.now_s) + COMPUTE_S
        metrics: Any = {name: Scalar(clock, busy_until_s) for name in NAMES}
        log.add(step, metrics, "")
        if step % save_interval == 0:
            log.flush()
            clock.now_s += 5.0
            log.start_clock()
    return rows


def test_a_row_has_the_time_of_its_own_step_and_none_of_a_save(monkeypatch):
    rows = train(monkeypatch, 12, batch_s=0.05, save_interval=4)
    # The first batch of the run, and the first after each save, are waited for.
    expected = [0.25, 0.2, 0.2, 0.2] * 3
    assert [row.step_s for row in rows] == pytest.approx(expected)
    assert [row.data_wait_s for row in rows] == pytest.approx([0.05, 0.0, 0.0, 0.0] * 3)


def test_the_wait_for_slow_batches_is_part_of_the_steps(monkeypatch):
    rows = train(monkeypatch, 4, batch_s=0.5, save_interval=4)
    # An upper bound of the idle time: when a training step ended during the wait is not known.
    assert [row.data_wait_s for row in rows] == pytest.approx([0.5] * 4)
    assert sum(row.step_s for row in rows) == pytest.approx(4 * 0.5 + COMPUTE_S)
    assert all(row.data_wait_s <= row.step_s + 1e-9 for row in rows)
