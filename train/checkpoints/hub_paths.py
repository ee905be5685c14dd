"""Names of the files that a run has in a repository on a hub."""

import re
from collections.abc import Collection

from pipeline.parts.part_copies import FOLDER as PARTS
from train.checkpoints.checkpoint_store import DIRECTORY as CHECKPOINTS

FIGURE_NAME = "training.png"
CONFIG_NAME, ENVIRONMENT_NAME = "config.json", "environment.json"
RUN_NAMES = (
    *(CONFIG_NAME, ENVIRONMENT_NAME, "datasets.json", "load_report.json", "description.txt"),
    *("metrics.jsonl", "validation.jsonl", "episode.npz", "views.png", "report.html"),
)
"""Files that are pushed where a run has them; tensorboard/ would repeat metrics.jsonl."""
_CHECKPOINT = re.compile(rf"{CHECKPOINTS}/(\d+)/.+")
_OWN = re.compile(
    rf"{_CHECKPOINT.pattern}|{PARTS}/[^/]+\.py\.txt|"
    + "|".join(map(re.escape, (*RUN_NAMES, FIGURE_NAME)))
)


def checkpoint_steps(paths: Collection[str]) -> list[int]:
    """Returns the training steps of the checkpoints among the paths of a repository."""
    return sorted({int(match[1]) for path in paths if (match := _CHECKPOINT.fullmatch(path))})


def own_paths(paths: Collection[str]) -> list[str]:
    """Returns those paths of a repository that a push writes, of any checkpoint."""
    return sorted(path for path in paths if _OWN.fullmatch(path))
