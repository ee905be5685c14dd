import pathlib

import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError
from pipeline.inspection import image_strips
from pipeline.inspection.image_strips import read_episode_strips, read_task_strips, spread


@pytest.mark.parametrize(
    ("total", "count", "places"),
    [(10, 3, [0, 4, 9]), (3, 8, [0, 1, 2]), (1, 8, [0]), (100, 2, [0, 99])],
)
def test_places_are_spread_evenly(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places


def test_a_strip_has_the_first_and_the_last_image(mini_dataset: pathlib.Path) -> None:
    found = read_episode_strips(open_dataset(str(mini_dataset)), 3)
    assert [list(strip.cameras) for strip in found] == [["image_primary"], ["image_wrist"]]
    images = found[1].cameras["image_wrist"]
    assert (len(images), min(images), max(images)) == (8, 0, 105)
    assert images[105].shape == (128, 128, 3)
    assert images[105].dtype == "uint8"
    assert images[105].std() > 0


def test_tasks_share_the_images_among_the_cameras(mini_dataset: pathlib.Path) -> None:
    dataset = open_dataset(str(mini_dataset))
    found = read_task_strips(dataset)
    assert [strip.heading for strip in found] == list(dataset.manifest.tasks)
    assert [strip.note for strip in found] == ["episode 0", "episode 1"]
    steps = {name: list(images) for name, images in found[0].cameras.items()}
    assert steps == {"image_primary": [0, 50, 101], "image_wrist": [0, 50, 101]}


def test_only_some_of_many_tasks_are_shown(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_strips, "MAX_TASKS", 1)
    assert len(read_task_strips(open_dataset(str(mini_dataset)))) == 1


def test_corrupt_image_names_its_record(
    mini_dataset: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(str(mini_dataset))
    monkeypatch.setattr(
        dataset.columns["steps"], "read", lambda _: {"observation/image_primary": b"no image"}
    )
    place = r"steps/00000-of-00002\.arrayrecord, record 102, observation/image_primary"
    with pytest.raises(DataError, match=place):
        read_episode_strips(dataset, 1)
