"""Goals and conditioning: a sample's goal step, and whether text or images give its task."""

import numpy as np


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
    return (draws < keep_image_prob) | ~has_text
