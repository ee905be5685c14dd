"""Changes what a run does at a chosen moment; used in separate processes."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from train.checkpoints.checkpoint_store import Checkpoints
from train.run_setup import Setup
from train.update.train_step import TrainStep


def signal_at_save(step: int, number: int) -> None:
    """Makes this process send itself a signal, once, while it writes the checkpoint of a step."""
    save = Checkpoints.save

    def save_and_signal(self: Checkpoints, state: Any, *others: Any) -> None:
        save(self, state, *others)
        if int(state.step) == step:
            Checkpoints.save = save  # a stop saves again
            os.kill(os.getpid(), number)

    Checkpoints.save = save_and_signal


def compile_in_turns(index: int, compiled: pathlib.Path) -> None:
    """Makes other processes than the first one load the program that the first has compiled.

    Otherwise all of them compile the same one. JAX's own way to share it, which the variable
    JAX_SHARE_BINARY_BETWEEN_HOSTS switches on, makes the processes of a CPU wait forever.
    """
    compile_step = Setup.compile

    def in_turn(self: Setup) -> TrainStep:
        while index and not compiled.exists():
            time.sleep(0.01)
        step = compile_step(self)
        compiled.touch()
        return step

    Setup.compile = in_turn


def in_order(*changes: Callable[[], None]) -> None:
    """Makes several of these changes."""
    for change in changes:
        change()
