"""Computes which steps a sample reads: its history, chunks of actions, and its goal."""

import numpy as np


def history_indices(t: np.ndarray, window_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The last `window_size` steps up to `t`; the first step repeats where the history is shorter.

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
    # (b, 1) + (w) is (b, w): the last column is `t` itself.
    steps = t[:, None] + np.arange(1 - window_size, 1)
    # The repeated first step is masked, so any valid index would do; this one is read already.
    return np.maximum(steps, 0), steps >= 0


def chunk_indices(steps: np.ndarray, lengths: np.ndarray, action_horizon: int) -> np.ndarray:
    """The actions that follow each step, int (b w h); the last repeats past the episode's end.

        steps = [[3, 4]], lengths = [6], action_horizon = 3
        [[[3 4 5] [4 5 5]]]

    Args:
      steps: int (b w), from `history_indices`.
      lengths: int (b), steps of each sample's episode.
      action_horizon: h, at least 1.

    Source: Octo's `chunk_act_obs`.
    """
    # (b, w, 1) + (h) is (b, w, h).
    actions = steps[..., None] + np.arange(action_horizon)
    return np.minimum(actions, (lengths - 1)[:, None, None])


def action_mask(steps: np.ndarray, ends: np.ndarray, action_horizon: int) -> np.ndarray:
    """Bool (b w h): True where an action of a chunk was recorded and comes before the goal.

        steps = [[3, 4]], action_horizon = 3
        ends = [6]:  [[[T T T] [T T F]]]      the episode has 6 steps
        ends = [5]:  [[[T T F] [T F F]]]      the goal is what step 5 sees

    Args:
      steps: int (b w), from `history_indices`.
      ends: int (b): the step whose observation is the goal image or, without one, the length of
        the episode.
      action_horizon: h, at least 1.

    Source: what Octo's `chunk_act_obs` intends; `octo_action_mask` computes what it does.
    """
    # `steps` repeats the first step in the padding; `timestep_pad_mask` masks those rows.
    return steps[..., None] + np.arange(action_horizon) < ends[:, None, None]


def octo_action_mask(
    t: np.ndarray, goals: np.ndarray, window_size: int, action_horizon: int
) -> np.ndarray:
    """Bool (b w h): the mask of the original Octo, for comparison with what it trained.

    It ends two steps later than `action_mask` after a goal image, one step later at the end of an
    episode, and does not repeat the first step in the padding of the history.

    Args:
      t: int (b), steps inside their episodes.
      goals: int (b): the step of the goal image; without one the episode's last step.
      window_size: w, at least 1.
      action_horizon: h, at least 1.

    Source: Octo's `chunk_act_obs`: an action is past the goal where
    goal - (t - (window_size + 1) + w + h) <= 0; with window_size - 1 it would be exact.
    """
    # Not clipped at the episode's first step, unlike `history_indices`.
    steps = t[:, None, None] + np.arange(1 - window_size, 1)[:, None] + np.arange(action_horizon)
    # Two steps past the goal, as the original counts; kept to compare with what it trained.
    return steps < goals[:, None, None] + 2


def uniform_goals(t: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Draws goals uniformly between each sample's step and the last of its episode; int (b).

        t = [0, 4], lengths = [10, 5], draws = [0.95, 0.5]
        [9, 4]

    Args:
      t: int (b), steps inside their episodes.
      lengths: int (b), steps of each sample's episode.
      draws: float (b) in [0, 1).

    Source: Octo's goal relabelling `uniform`; the own step may be its own goal.
    """
    # float64: a draw just below 1 times a long episode would round up in float32.
    later = np.floor(draws.astype(np.float64) * (lengths - t)).astype(t.dtype)
    return np.minimum(t + later, lengths - 1)


def keeps_goal_images(
    has_text: np.ndarray, keep_image_prob: float, draws: np.ndarray
) -> np.ndarray:
    """Bool (b): True where goal images give the task, False where the instruction does.

    Every sample keeps one of the two; one without an instruction keeps its images.

    Args:
      has_text: bool (b): whether the sample has an instruction.
      keep_image_prob: Probability that a sample keeps its images.
      draws: float (b) in [0, 1).

    Source: Octo's `delete_task_conditioning`.
    """
    # Without an instruction there is nothing else to give the task by.
    return (draws < keep_image_prob) | ~has_text
