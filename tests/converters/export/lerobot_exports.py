"""A dataset with a feature of every kind that LeRobot has, whose exports LeRobot itself has read.

    python -m tests.converters.export.lerobot_exports FOLDER

writes it and its exports, for `benchmarks/lerobot_reading.py`.
"""

import dataclasses
import pathlib
import sys

import numpy as np
from etils import epath

from converters.export.lerobot.lerobot_writer import export_lerobot
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import open_dataset
from pipeline.data.dataset_writer import write_manifest
from pipeline.data.manifest import TaskChange, load_manifest
from tests.small_dataset import LENGTH, write_dataset

RECORDED = pathlib.Path(__file__).parents[2] / "data" / "golden" / "lerobot_export"
NUM_EPISODES = 3
TASKS = ("open the drawer", "prends la crêpe")
CHANGE = TaskChange(episode=1, step=4, task=0)
CONVENTIONS = Conventions(
    "upright", "axis_angle", control_frequency_hz=12.5, no_ops="kept", target_poses=True
)
DIMS = {"action": ("dx_m", "dy_m", "dz_m", "drx_rad", "dry_rad", "drz_rad", "gripper")}


def write_exported(directory: pathlib.Path) -> pathlib.Path:
    """Writes the dataset; its values are the same every time, to the bit."""
    num_steps = NUM_EPISODES * LENGTH
    step = np.arange(num_steps)
    values = {
        "action": _numbers(num_steps, 7),
        "observation/proprio": _numbers(num_steps, 8),
        "observation/image_primary": _images(num_steps, 32, 48),
        "observation/image_wrist": _images(num_steps, 24, 32),
        "observation/depth_primary": (_images(num_steps, 12, 16)[..., :1] * 200).astype(np.uint16),
        "observation/force": _numbers(num_steps, 1),
        "observation/markers": _numbers(num_steps, 6).reshape(num_steps, 2, 3),
        "reward": step.astype(np.float32) / 7,
        "timestamp": step.astype(np.int32) * 1000,
        "is_grasped": step % 4 == 3,
    }
    write_dataset(
        directory,
        values,
        tasks=TASKS,
        num_episodes=NUM_EPISODES,
        dims=DIMS,
        conventions=CONVENTIONS,
    )
    manifest = load_manifest(epath.Path(directory))
    # The statistics stay those of the same values.
    statistics = open_dataset(directory).statistics
    changed = dataclasses.replace(manifest, task_changes=(CHANGE,))
    write_manifest(epath.Path(directory), changed, dict(statistics))
    return directory


def _numbers(num_steps: int, width: int) -> np.ndarray:
    """Numbers without a pattern and without a random generator, float32 (t, width)."""
    grid = np.arange(num_steps * width).reshape(num_steps, width)
    return (((grid * 7919) % 1009) / 1009 - 0.5).astype(np.float32)


def _images(num_steps: int, height: int, width: int) -> np.ndarray:
    """A ramp that moves, uint8 (t, h, w, 3): a video keeps it well."""
    step, y, x = np.ogrid[:num_steps, :height, :width]
    channels = (4 * y + 2 * step, 3 * x + step, 255 - 2 * (x + y) - 0 * step)
    stacked = [np.broadcast_to(channel, (num_steps, height, width)) for channel in channels]
    return np.stack(stacked, axis=-1).astype(np.uint8)


def main() -> None:
    """Writes the dataset and its exports."""
    folder = pathlib.Path(sys.argv[1])
    dataset = open_dataset(write_exported(folder / "dataset"))
    for storage in ("image", "video"):
        export_lerobot(dataset, str(folder / storage), storage=storage)


if __name__ == "__main__":
    main()
