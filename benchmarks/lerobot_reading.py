"""Records what LeRobot's own loader returns for an export, for the tests of `export --to lerobot`.

    python -m tests.converters.export.lerobot_exports FOLDER
    python3.12 -m venv ENV && ENV/bin/pip install 'lerobot[dataset]==0.6.1'
    ENV/bin/python benchmarks/lerobot_reading.py FOLDER tests/data/golden/lerobot_export

This file runs in the environment of LeRobot. It writes image.npz and video.npz:

    FEATURE                values of all frames, as the loader returned them, but cameras
    images/FEATURE         uint8 (n, h, w, 3) of the frames in `image_frames`, depth (n, h, w, 1)
    task                   text of every frame
    chunk, chunk_is_pad    action of 4 steps from the last frame but one of the first episode on

and image.json and video.json, the statistics by feature and name that its own code computes of the
values that it returned. It checks that those which it read have the same shapes.

Any warning, of Python or logged, is an error.
"""

import json
import logging
import pathlib
import sys
import warnings

import numpy as np
from lerobot.datasets import compute_stats, lerobot_dataset

_IMAGE_FRAMES = (0, 9, 17)
_CHUNK = 4


class _Refuse(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Raises for a warning; that a faster decoder is missing says nothing of the files."""
        if record.levelno >= logging.WARNING and "torchcodec" not in record.getMessage():
            raise RuntimeError(record.getMessage())


def read(root: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, list[float]]]]:
    """Returns what is recorded of a LeRobot dataset, and the statistics of it."""
    dataset = lerobot_dataset.LeRobotDataset("local/export", root=root)
    cameras = dataset.meta.camera_keys
    items = [dataset[index] for index in range(len(dataset))]
    found = {
        key: np.stack([item[key].numpy() for item in items])
        for key in dataset.meta.features
        if key not in cameras
    }
    frames = {key: np.stack([item[key].numpy() for item in items]) for key in cameras}
    computed = {
        key: compute_stats.get_feature_stats(value, 0, keepdims=value.ndim == 1)
        for key, value in found.items()
    }
    for key, value in frames.items():
        of_images = compute_stats.get_feature_stats(value, (0, 2, 3), keepdims=True)
        computed[key] = {k: v if k == "count" else v[0] for k, v in of_images.items()}
        scale = 1 if key in dataset.meta.depth_keys else 255
        last = np.moveaxis(value[list(_IMAGE_FRAMES)], 1, -1) * scale
        found[f"images/{key}"] = last.round().astype(np.uint16 if scale == 1 else np.uint8)
    for key, of_feature in computed.items():
        for name, value in of_feature.items():
            assert dataset.meta.stats[key][name].shape == value.shape, (key, name)
    found["image_frames"] = np.array(_IMAGE_FRAMES)
    found["task"] = np.array([item["task"] for item in items])
    found["fps"] = np.array(dataset.fps)
    found |= _chunk(root, dataset.fps, dataset.meta.episodes[0]["length"] - 2)
    listed = {
        key: {name: np.float64(value).ravel().round(6).tolist() for name, value in one.items()}
        for key, one in computed.items()
    }
    return found, listed


def _chunk(root: pathlib.Path, fps: float, index: int) -> dict[str, np.ndarray]:
    times = {"action": [step / fps for step in range(_CHUNK)]}
    dataset = lerobot_dataset.LeRobotDataset("local/export", root=root, delta_timestamps=times)
    item = dataset[index]
    return {"chunk": item["action"].numpy(), "chunk_is_pad": item["action_is_pad"].numpy()}


def main() -> None:
    """Reads both exports and records them."""
    warnings.simplefilter("error")
    logging.getLogger().addHandler(_Refuse())
    folder, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for storage in ("image", "video"):
        found, statistics = read(folder / storage)
        np.savez_compressed(out / f"{storage}.npz", **found)
        (out / f"{storage}.json").write_text(json.dumps(statistics) + "\n")


if __name__ == "__main__":
    main()
