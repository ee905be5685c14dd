import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest

from pipeline.errors import UserError
from tests.train.evaluate.libero.fake_env import DIES, FAILS, HANGS, MISUSED, SLOW, FakeEnv, trial
from train.evaluate.libero.simulator_pool import EnvPool, Lost, Reply

ACTIONS = np.zeros((4, 7))
ROOT = pathlib.Path(__file__).parents[4]


def reply(pool: EnvPool) -> Reply:
    answer = pool.receive()
    assert isinstance(answer, Reply)
    return answer


def lost(pool: EnvPool) -> Lost:
    answer = pool.receive()
    assert isinstance(answer, Lost)
    return answer


def seen(answer: Reply) -> list[int]:
    """The steps at which the observations were made."""
    return [int(o["proprio"][1]) for o in answer.observations]


def children() -> list[multiprocessing.process.BaseProcess]:
    return multiprocessing.active_children()


def test_a_trial_runs_to_its_end_and_observes_what_is_asked_for() -> None:
    with EnvPool(FakeEnv, 1) as pool:
        pool.begin(0, trial(7))
        answer = reply(pool)
        assert (answer.worker, answer.trial, seen(answer)) == (0, trial(7), [0])
        pool.act(0, ACTIONS, num_observed=2)
        answer = reply(pool)
        assert (answer.outcome.num_steps, answer.outcome.is_over, seen(answer)) == (
            4,
            False,
            [3, 4],
        )
        pool.act(0, ACTIONS)  # over after one: the last of them, to be observed, is never done
        answer = reply(pool)
        assert (answer.outcome.num_steps, answer.outcome.is_over, seen(answer)) == (5, True, [])
        pool.begin(0, trial(8))
        assert int(reply(pool).observations[0]["proprio"][0]) == 8
    assert children() == []


def test_workers_are_processes_of_their_own_and_answer_as_they_are_ready() -> None:
    with EnvPool(FakeEnv, 2) as pool:
        assert (pool.idle, pool.num_busy) == ((0, 1), 0)
        for worker, init in enumerate((SLOW, 1)):
            pool.begin(worker, trial(init))
        assert (pool.idle, pool.num_busy) == ((), 2)
        first = {reply(pool).worker: None for _ in range(2)}
        assert sorted(first) == [0, 1]
        pool.act(0, ACTIONS)  # asked first, and slow
        pool.act(1, ACTIONS)
        answers = [reply(pool), reply(pool)]
        assert [answer.worker for answer in answers] == [1, 0]
        processes = {float(answer.observations[0]["proprio"][2]) for answer in answers}
        assert len(processes) == 2
        assert float(os.getpid()) not in processes


def test_of_answers_that_are_there_the_oldest_request_is_served_first() -> None:
    with EnvPool(FakeEnv, 3) as pool:
        for worker in (2, 0, 1):
            pool.begin(worker, trial(worker))
        for _ in range(3):
            pool.receive()
        for worker in (1, 2, 0):
            pool.act(worker, ACTIONS)
        assert all(worker.connection.poll(60) for worker in pool._workers)
        assert [reply(pool).worker for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("init", "found"),
    [
        (DIES, "found it was killed by signal 9, perhaps for want of memory"),
        (FAILS, "found RuntimeError: the simulation is unstable"),
        (HANGS, "found no answer after 2 s"),
    ],
)
def test_a_worker_that_is_lost_is_reported_with_its_trial_and_replaced(
    init: int, found: str
) -> None:
    with EnvPool(FakeEnv, 2) as pool:
        for worker, number in enumerate((init, 1)):
            pool.begin(worker, trial(number))
        [reply(pool) for _ in range(2)]
        if init == HANGS:  # only now: the start of a process may take as long
            pool._timeout_s = 2.0
        pool.act(0, ACTIONS)
        answer = lost(pool)
        assert (answer.worker, answer.trial) == (0, trial(init))
        message = f"libero_spatial task 3, initial state {init}, simulator process 0: "
        assert str(answer.error).startswith(f"{message}expected an answer; {found}.")
        assert pool.idle == (0, 1)
        pool._timeout_s = 60.0
        pool.begin(0, trial(2))  # a retry, on the process that replaced it
        pool.act(1, ACTIONS)  # the other one continued
        answers = {reply.worker: reply for reply in (reply(pool), reply(pool))}
        assert int(answers[0].observations[0]["proprio"][0]) == 2
        assert answers[1].outcome.num_steps == 4
        assert len(children()) == 2
    assert children() == []


def test_what_a_user_did_wrong_ends_the_run() -> None:
    with EnvPool(FakeEnv, 1) as pool:
        pool.begin(0, trial(MISUSED))
        reply(pool)
        pool.act(0, ACTIONS)
        with pytest.raises(UserError, match=r"^action: expected a; found b\. Fix it\.$"):
            pool.receive()


def broken() -> FakeEnv:
    raise UserError(where="assets", expected="all", found="none", remedy="Fetch them.")


def test_an_environment_that_cannot_be_made_is_reported_at_its_first_request() -> None:
    with EnvPool(broken, 1) as pool:
        pool.begin(0, trial(0))
        with pytest.raises(UserError, match=r"^assets: expected all"):
            pool.receive()


def test_requests_out_of_turn_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1, not 0"):
        EnvPool(FakeEnv, 0)
    with EnvPool(FakeEnv, 1) as pool:
        with pytest.raises(RuntimeError, match="no request is under way"):
            pool.receive()
        with pytest.raises(RuntimeError, match="worker 0 has no trial: begin one"):
            pool.act(0, ACTIONS)
        with pytest.raises(ValueError, match="actions is empty"):
            pool.act(0, ACTIONS[:0])
        pool.begin(0, trial(0))
        with pytest.raises(RuntimeError, match="worker 0 has not answered yet"):
            pool.begin(0, trial(1))


SCRIPT = """
import sys, time
from pipeline.errors import user_errors_exit
from train.evaluate.libero.simulator_pool import EnvPool
from tests.train.evaluate.libero.fake_env import HANGS, FakeEnv, trial
import numpy as np

if __name__ == "__main__":
    with user_errors_exit(), EnvPool(FakeEnv, 2) as pool:
        for worker in range(2):
            pool.begin(worker, trial(HANGS))
        for _ in range(2):
            pool.receive()
        for worker in range(2):
            pool.act(worker, np.zeros((4, 7)))
        print("ready", flush=True)
        pool.receive()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_no_process_is_left_after_an_interrupt_or_a_kill(
    tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: all of them get it
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == ("interrupted\n" if code > 0 else "")
    _, alive = psutil.wait_procs(below, timeout=20)
    assert alive == []
