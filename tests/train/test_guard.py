import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys

import pytest

from pipeline.errors import RecordError, UserError
from train import distributed
from train.guard import Guard, Stopped

WAITS = """
import logging, os, signal, time
from train import guard

logging.basicConfig(format="%(message)s")
guard._PATIENCE_S = 0.2
with guard.Guard(None) as requests:
    os.kill(os.getpid(), signal.SIGTERM)
    print("noted", flush=True)
    while True:  # as a process that waits for another one, which does not answer
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_second_signal_ends_a_process_that_does_not_stop():
    done = subprocess.run(
        [sys.executable, "-c", WAITS], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stdout == "noted\n"
    assert done.stderr.splitlines() == [
        "SIGTERM: stopping; a second one after 5 s ends the run unsaved",
        "ended by a second SIGTERM; --resume continues from the last checkpoint",
    ]


def fail(name: str) -> None:
    raise UserError(where=name, expected="a", found="b", remedy="Fix it.")


def loop(guard: Guard, num_steps: int, work, saved: list[int]) -> None:
    """A loop as in the guard's docstring."""
    guard.record_ctrl_c()
    for step in range(num_steps):
        guard.attempt(work, step)
        guard.check(step, lambda step=step: saved.append(step))


def test_an_error_ends_a_loop_before_the_next_step_with_the_state_saved(shallow_config):
    saved: list[int] = []
    with Guard(shallow_config) as guard:
        for name in ("the cause", "what follows from it"):
            guard.attempt(fail, name)
        with pytest.raises(UserError) as caught:
            guard.check(7, lambda: saved.append(7))
    assert saved == [7]
    first, saved_at = "the cause: expected a; found b.", "The run is saved at step 7"
    assert str(caught.value) == f"{first} {saved_at}: continue with --resume. Fix it."


def test_an_error_at_the_last_step_leaves_nothing_to_continue(shallow_config):
    with Guard(shallow_config) as guard:
        guard.attempt(fail, "x")
        with pytest.raises(UserError, match=r"saved at step \d+: it is the last one\. Fix it"):
            guard.check(shallow_config.num_steps, list)


def test_a_corrupt_record_is_reported_with_the_flags_that_exclude_it(shallow_config):
    path = shallow_config.data.datasets[0].path
    texts = {"where": "w", "expected": "e", "found": "f", "remedy": "r"}
    error = RecordError(**texts, dataset=path, record="steps/0:3")

    def read() -> None:
        raise error

    with Guard(shallow_config) as guard:
        guard.attempt(read)
        with pytest.raises(UserError, match=r"add --config.data.datasets.0.excluded steps/0:3$"):
            guard.check(0, list)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_a_loop_at_the_next_check(shallow_config, number, caplog):
    saved: list[int] = []
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, Guard(shallow_config) as guard:
        loop(guard, 5, lambda step: step == 2 and os.kill(os.getpid(), number), saved)
    assert saved == [2]
    assert caught.value.by is number
    assert f"stopped by {number.name}; the state is saved: continue with --resume" in caplog.text
    assert signal.getsignal(number) is handler


def test_a_signal_to_another_process_is_named(shallow_config, monkeypatch, caplog):
    flags: list[int] = []
    monkeypatch.setattr("jax.process_index", lambda: 3)
    monkeypatch.setattr(distributed, "agree", lambda flag=0, error=None: flags.append(flag) or flag)
    with Guard(shallow_config) as guard:
        guard.record_ctrl_c()
        guard.check(1, list)
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(Stopped):
            guard.check(2, list)
    none, sent, _ = flags
    assert not none
    # What the others receive.
    monkeypatch.setattr(distributed, "agree", lambda flag=0, error=None: sent)
    with pytest.raises(Stopped) as caught, Guard(shallow_config) as guard:
        guard.check(2, list)
    assert (caught.value.by, caught.value.cause) == (None, "SIGINT to process 3")
    assert "stopped by SIGINT to process 3; the state is saved: continue with" in caplog.text


def test_what_fails_in_the_save_of_a_stop_is_an_error(shallow_config):
    """Such as a full disk, when the rows before the checkpoint are written."""
    saved: list[int] = []

    def save() -> None:
        guard.attempt(fail, "the rows")
        saved.append(3)

    with Guard(shallow_config) as guard:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(UserError, match=r"the rows: .* saved at step 3: continue with --res"):
            guard.check(3, save)
    assert saved == [3]


def test_a_stop_whose_save_fails_is_that_error_and_saves_once(shallow_config):
    saves: list[str] = []

    def save() -> None:
        saves.append("begun")
        fail("checkpoints/3")

    with Guard(shallow_config) as guard:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(UserError, match=r"^checkpoints/3: expected a; found b\. Fix it\.$"):
            guard.check(3, save)
    assert saves == ["begun"]


def test_a_guard_that_is_released_leaves_signals_alone(shallow_config):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with Guard(shallow_config) as guard:
        guard.record_ctrl_c()
        guard.release()
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        assert [signal.getsignal(number) for number in numbers] == handlers
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_receives_no_signals_and_is_refused(shallow_config):
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        pytest.raises(UserError, match=r"training: expected the main thread"),
    ):
        pool.submit(Guard(shallow_config).__enter__).result()


def test_a_second_ctrl_c_interrupts_at_once(shallow_config):
    with pytest.raises(KeyboardInterrupt), Guard(shallow_config) as guard:
        loop(guard, 1, lambda step: [os.kill(os.getpid(), signal.SIGINT) for _ in "ab"], [])


def test_what_is_no_user_error_is_not_held_back(shallow_config):
    with pytest.raises(ZeroDivisionError), Guard(shallow_config) as guard:
        guard.attempt(lambda: 1 // 0)
