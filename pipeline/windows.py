"""Which steps a sample reads: its history and, for each of its steps, a chunk of actions."""

import numpy as np


def history_indices(t: np.ndarray, window_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps that end at `t`; before the first step, the first step again.

        t = [0, 1, 5], window_size = 3
        indices [[0 0 0]    mask [[F F T]
                 [0 0 1]          [F T T]
                 [3 4 5]]         [T T T]]

    Args:
      t: int (b), steps inside their episodes.
      window_size: w, at least 1.

    Returns:
      (indices, mask): int (b w) and bool (b w), True where the step is real.

    Source: Octo's `chunk_act_obs`.
    """
    steps = t[:, None] + np.arange(1 - window_size, 1)
    return np.maximum(steps, 0), steps >= 0


def chunk_indices(
    steps: np.ndarray, lengths: np.ndarray, action_horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """The actions that follow each step; past the episode's end, the last action again.

        steps = [[3, 4]], lengths = [6], action_horizon = 3
        indices [[[3 4 5] [4 5 5]]]    mask [[[T T T] [T T F]]]

    Args:
      steps: int (b w), as `history_indices` gives them.
      lengths: int (b), steps of each sample's episode.
      action_horizon: h, at least 1.

    Returns:
      (indices, mask): int (b w h) and bool (b w h), True where the action was recorded.

    Source: Octo's `chunk_act_obs`. Its mask calls an action past the end two steps too late; here
    it is exact.
    """
    actions = steps[..., None] + np.arange(action_horizon)
    last = (lengths - 1)[:, None, None]
    return np.minimum(actions, last), actions <= last
