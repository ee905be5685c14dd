import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from train.processes import liveness
from train.processes.liveness import EXIT_OTHER_DIED, Liveness

MEMBER = """
import sys, threading
from train.processes import liveness

for name, seconds in zip(("_BEAT_S", "_SILENCE_S", "_SUSPECT_S", "_PAUSE_S"), sys.argv[1].split()):
    setattr(liveness, name, float(seconds))
index, port, token = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
own = liveness.Liveness(index, f"node{index}", liveness.Address("localhost", port, token, "node0"))
print("joined", flush=True)
for line in sys.stdin:
    exec(line)
"""
KILLED = "found that it was killed (out of memory, for example), or that its host failed. "
REMEDY = (
    "This process ended as well. Continue from the last checkpoint with --resume, on as many "
    "processes or fewer."
)


class Member:
    """A process of its own that only joins process 0."""

    def __init__(self, index, address):
        seconds = f"{liveness._BEAT_S} {liveness._SILENCE_S} {liveness._SUSPECT_S} "
        seconds += str(liveness._PAUSE_S)
        line = [sys.executable, "-c", MEMBER, seconds, str(index), str(address.port), address.token]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_until_joined(self):
        assert self.process.stdout.readline() == "joined\n", self.process.stderr.read()

    def call(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ended(self):
        """Returns its exit code and what it wrote to stderr."""
        code = self.process.wait(60)
        return code, self.process.stderr.read()


class Run:
    """Process 0, here, and others."""

    def __init__(self, count):
        self.lines = []
        self.is_over = threading.Event()
        self.zero = Liveness(0, "node0", end=self._end)
        address = self.zero.address("localhost")
        self.others = [Member(index, address) for index in range(1, count)]
        for other in self.others:
            other.wait_until_joined()
        # Until each has sent its first message, it may end unnoticed.
        while sum(link.other.index > 0 for link in self.zero._links) < count - 1:
            time.sleep(0.01)

    def _end(self, line):
        self.lines.append(line)
        self.is_over.set()

    def line(self):
        assert self.is_over.wait(60)
        return self.lines[0]


@pytest.fixture
def start(monkeypatch):
    """Starts runs with short intervals, and ends their processes."""
    for name, seconds in (("_BEAT_S", 0.05), ("_SILENCE_S", 30.0), ("_SUSPECT_S", 0.3)):
        monkeypatch.setattr(liveness, name, seconds)
    with contextlib.ExitStack() as stack:

        def start_run(count):
            run = Run(count)
            for one in run.others:
                stack.enter_context(one.process)
                stack.callback(one.process.kill)
            stack.callback(run.zero.leave)
            return run

        yield start_run


def test_a_killed_process_ends_the_others_with_one_line(start):
    run = start(3)
    run.others[1].process.kill()
    expected = "error: process 2 on node2: expected it to run until all processes have finished; "
    assert run.line() == f"{expected}{KILLED}{REMEDY}\n"
    assert run.others[0].ended() == (EXIT_OTHER_DIED, run.line())


def test_the_death_of_process_0_ends_the_others(start):
    run = start(2)
    # The process that hosts the connections, as the others see its end.
    for link in run.zero._links:
        link.connection.shutdown(socket.SHUT_RDWR)
    code, line = run.others[0].ended()
    assert code == EXIT_OTHER_DIED
    # Under the name of its host, once it has said it.
    assert line.startswith(("error: process 0 on node0: ", "error: process 0 on localhost: "))
    assert KILLED in line
    assert line.count("\n") == 1


def test_a_process_that_hangs_counts_as_dead_after_a_silence(start, monkeypatch):
    monkeypatch.setattr(liveness, "_SILENCE_S", 1.0)
    run = start(3)
    run.others[0].process.send_signal(signal.SIGSTOP)
    assert "process 1 on node1: " in run.line()
    assert "no sign of life for 55 s: it hangs" in run.line()
    assert run.others[1].ended() == (EXIT_OTHER_DIED, run.line())


def test_a_pause_that_is_shorter_ends_nothing(start):
    run = start(2)
    run.others[0].process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    run.others[0].process.send_signal(signal.SIGCONT)
    run.others[0].call("own.leave()")
    run.others[0].process.stdin.close()
    assert run.others[0].ended() == (0, "")
    assert not run.lines


def test_a_process_that_fails_ends_the_others_with_its_error(start):
    run = start(3)
    run.others[1].call("own.fail('MemoryError: 3 GB'); print('reported', flush=True)")
    assert "error: process 2 on node2: " in run.line()
    assert "found MemoryError: 3 GB." in run.line()
    assert run.others[0].ended() == (EXIT_OTHER_DIED, run.line())
    # It prints its own error.
    assert run.others[1].process.stdout.readline() == "reported\n"
    assert run.others[1].process.poll() is None


def test_process_0_fails_like_any_other(start):
    run = start(2)
    run.zero.fail("MemoryError: 3 GB")
    assert not run.lines
    code, line = run.others[0].ended()
    assert code == EXIT_OTHER_DIED
    assert "process 0 on node0: " in line
    assert "found MemoryError: 3 GB." in line


def test_an_error_that_follows_from_a_death_reports_the_death(start, monkeypatch):
    """Such as a collective that times out because another process hangs."""
    monkeypatch.setattr(liveness, "_SILENCE_S", 1.5)
    run = start(3)
    run.others[0].process.send_signal(signal.SIGSTOP)
    time.sleep(0.6)
    run.others[1].call("own.fail('the collective timed out')")
    assert "process 1 on node1: " in run.line()
    assert run.others[1].ended() == (EXIT_OTHER_DIED, run.line())


def test_processes_that_leave_one_after_another_end_nothing(start):
    run = start(3)
    for other in run.others:
        other.call("own.leave()")
        other.process.stdin.close()
        assert other.ended() == (0, "")
        time.sleep(0.2)
    assert not run.lines


def test_what_does_not_belong_to_the_run_is_turned_away(start):
    run = start(2)
    port = run.zero.address("localhost").port
    messages = (
        b"GET / HTTP/1.1\r\n",
        b'["token", 1, "node1", "dead", "x"]\n',
        b"5\n",
        # Too deep for the parser.
        b"[" * 60_000 + b"\n",
    )
    for message in messages:
        with socket.create_connection(("localhost", port), 10) as stranger:
            stranger.sendall(message)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(10_000, socket.MSG_WAITALL) == b""
    assert run.others[0].process.poll() is None
    assert not run.lines


def test_a_stranger_that_says_nothing_hears_nothing_and_is_turned_away(start, monkeypatch):
    monkeypatch.setattr(liveness, "_CONNECT_S", 0.5)
    run = start(2)
    port = run.zero.address("localhost").port
    # Several messages go to the others meanwhile, each with the token.
    with socket.create_connection(("localhost", port), 10) as stranger:
        assert stranger.recv(10_000, socket.MSG_WAITALL) == b""
    assert [link.other.index for link in run.zero._links] == [1]
    assert not run.lines


def test_processes_that_are_stopped_together_continue(start, monkeypatch):
    """A scheduler may stop all processes of a run, and let them continue after hours."""
    monkeypatch.setattr(liveness, "_SILENCE_S", 0.9)
    monkeypatch.setattr(liveness, "_PAUSE_S", 0.3)
    run = start(2)
    select = run.zero._selector.select
    stopped = threading.Event()

    def select_after_a_stop(timeout):
        if stopped.is_set():
            return select(timeout)
        run.others[0].process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        run.others[0].process.send_signal(signal.SIGCONT)
        stopped.set()
        # So it is after a stop, whatever has arrived.
        return []

    monkeypatch.setattr(run.zero._selector, "select", select_after_a_stop)
    assert stopped.wait(20)
    run.others[0].call("own.leave()")
    run.others[0].process.stdin.close()
    assert run.others[0].ended() == (0, "")
    assert not run.lines


def test_only_process_0_listens():
    zero = Liveness(0, "node0", end=lambda _: None)
    one = Liveness(1, "node1", zero.address("localhost"), end=lambda _: None)
    with pytest.raises(ValueError, match="process 1 does not listen"):
        one.address("localhost")
    one.leave()
    zero.leave()
