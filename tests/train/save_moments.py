"""Interrupts runs at a chosen moment; used in separate processes."""

import os
from typing import Any

from train.checkpoints.checkpoint_store import Checkpoints


def signal_at_save(step: int, number: int) -> None:
    """Makes this process send itself a signal, once, while it writes the checkpoint of a step."""
    save = Checkpoints.save

    def save_and_signal(self: Checkpoints, state: Any, *others: Any) -> None:
        save(self, state, *others)
        if int(state.step) == step:
            Checkpoints.save = save  # a stop saves again
            os.kill(os.getpid(), number)

    Checkpoints.save = save_and_signal
