"""A package that looks like the simulator's, with nothing in it that could simulate."""

import io
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

TASK_MAP = """
import torch  # as the real one's package does

libero_task_map = {
    "libero_spatial": ["pick_up_the_bowl", "push_the_plate"],
    "libero_10": [
        "LIVING_ROOM_SCENE2_put_both_the_soup_and_the_sauce_in_the_basket",
        "KITCHEN_SCENE10_close_the_drawer",
    ],
}
"""


def zipped(path: pathlib.Path, value: Any, name: str = "archive/data.pkl") -> pathlib.Path:
    """A file as torch writes an array: a zip with a pickle in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        data = io.BytesIO()
        pickle.dump(value, data, protocol=2)
        file.writestr(name, data.getvalue())
    return path


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Folder of the package: two suites of two tasks, three initial states of the first task."""
    root = tmp_path / "libero" / "libero"
    for folder in ("benchmark", "bddl_files"):
        (root / folder).mkdir(parents=True)
    (root / "benchmark" / "libero_suite_task_map.py").write_text(TASK_MAP)
    states = np.arange(12.0).reshape(3, 4)
    zipped(root / "init_files" / "libero_spatial" / "pick_up_the_bowl.pruned_init", states)
    return root
