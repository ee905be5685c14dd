"""The source of one's own that the documentation shows, as it stands there."""

import pathlib
import re

import numpy as np
import pytest

from converters.mapping.mapping_proposal import describe
from octograin import open_dataset
from pipeline.errors import UserError

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "sources" / "your_own.md"


def write_episodes(folder: pathlib.Path) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    folder.mkdir()
    actions = [random.normal(size=(length, 7)).astype(np.float32) for length in (4, 3)]
    for number, action in enumerate(actions):
        image = np.full((len(action), 16, 24, 3), 50 + 100 * number, np.uint8)
        text = np.array(f"open drawer {number}")
        np.savez(folder / f"{number}.npz", action=action, image=image, instruction=text)
    return actions


def test_the_class_of_the_page_converts_files_of_another_format(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    actions = write_episodes(tmp_path / "my_episodes")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    program, last = block.rstrip().rsplit("\n", 1)
    page: dict = {"__name__": "my_source"}
    exec(compile(program, str(PAGE), "exec"), page)
    source = page["open_folder"]("my_episodes")
    (tmp_path / "my_robot.toml").write_text(describe(source))
    exec(last, page)
    dataset = open_dataset("data/my_robot")
    assert dataset.manifest.tasks == ("open drawer 0", "open drawer 1")
    for number, action in enumerate(actions):
        np.testing.assert_array_equal(dataset.episode(number)["action"], action)
        image = dataset.step(number, 2)["observation"]["image_primary"]
        np.testing.assert_array_equal(image, np.full((16, 24, 3), 50 + 100 * number))
    selected = source.select(1, 2)
    (episode,) = selected.episodes(selected.shards[0])
    assert episode.where.endswith("1.npz")
    with pytest.raises(UserError, match="expected a range A:B of episodes with 0 <= A < B <= 2"):
        source.select(1, 3)
