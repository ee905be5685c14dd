"""Two processes that meet without training: an error, a flag, and the death of one of them."""

import os
import signal
import sys

import jax

from pipeline.errors import UserError, user_errors_exit
from pipeline.terminal import log_to_stderr
from train import distributed
from train.flags import load_config
from train.guard import Guard


def main() -> None:
    """Runs one of the two: `joined_pair INDEX`, the number of the process that dies."""
    log_to_stderr()
    with user_errors_exit():
        distributed.join()
        index = jax.process_index()

        def claim() -> None:
            if index == 0:
                raise UserError(where="the claim", expected="a", found="b", remedy="Fix it.")

        try:
            distributed.together(claim)
        except UserError as error:
            print(error, flush=True)  # noqa: T201  (read by the test)
        # Only the second one has the flag.
        assert distributed.agree(flag=index == 1)
        assert not distributed.agree()
        with Guard(load_config("tests/data/tiny_config.py")):
            if index == int(sys.argv[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            # Waits for the other one, or meets an error of gloo.
            distributed.agree()
