"""Sets that LeRobot wrote, against what its own reader gave."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from converters.lerobot.lerobot_source import open_lerobot

SETS = {
    name: name
    for name in ("v3_video", "v3_image", "v3_multi", "aloha_like", "v21_video", "v21_image")
} | {"broken_base": "broken_base", "v20_video": "v21_video", "v3_unnamed_tasks": "broken_base"}
"""The sets, and those whose recorded values they have."""
NOT_A_FEATURE = {
    "task",
    "episode_length",
    "fps",
    "image_frames",
    "action_chunk",
    "action_chunk_is_pad",
}


def pixels(image) -> np.ndarray:
    found = np.asarray(Image.open(io.BytesIO(image)))
    return found if found.ndim == 3 else found[:, :, None]


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_the_values_that_lerobot_reads(shared: pathlib.Path, name: str) -> None:
    golden = shared / "golden" / "lerobot"
    recorded = np.load(golden / f"expected_{SETS[name]}.npz")
    source = open_lerobot(golden / name)
    source.check_files()
    episodes = [e.values for shard in source.shards for e in source.episodes(shard)]
    lengths = [len(values["steps/action"]) for values in episodes if isinstance(values, dict)]
    assert lengths == recorded["episode_length"].tolist()
    texts = [text.decode() for values in episodes for text in values["steps/task"]]
    assert texts == recorded["task"].tolist()
    for feature in set(recorded.files) - NOT_A_FEATURE:
        key = source.keys["steps/" + feature.replace(".", "/")]
        found = [values[key.key] for values in episodes]
        if key.kind == "tensor":
            np.testing.assert_array_equal(np.concatenate(found), recorded[feature])
            assert found[0].dtype == recorded[feature].dtype
            continue
        images = [image for part in found for image in part]
        frames = np.stack([pixels(images[place]) for place in recorded["image_frames"]])
        error = np.abs(frames.astype(float) - recorded[feature])
        if key.dtype == "uint16":
            # LeRobot gives 10 mm where there is no reading.
            is_missing = recorded[feature] == 10
            assert (frames[is_missing] == 0).all()
            assert error[~is_missing].max() <= 0.5001  # whole millimetres
        else:
            assert error.mean() <= (0 if name.endswith("_image") else 2)
