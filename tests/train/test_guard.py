import signal
import subprocess
import sys

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
