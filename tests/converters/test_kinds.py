"""The kinds of features that real sources declare: what each becomes, or the sentence it gets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from converters.rlds.example import read_episodes
from converters.rlds.source import open_source
from pipeline.errors import DataError, SchemaError

from .conftest import Toy, jpeg

Image = tfds.features.Image
Scalar = tfds.features.Scalar
Sequence = tfds.features.Sequence
Tensor = tfds.features.Tensor
Text = tfds.features.Text

IMAGES = [jpeg(seed) for seed in range(6)]
NUMBERS = np.arange(18, dtype=np.float32)
FLAT, ROWS = "steps/x/ragged_flat_values", "steps/x/ragged_row_lengths_0"

# what is declared as steps/x and stored for three steps; what keys with which shapes and values
READ: dict[str, tuple[Any, Mapping[str, Any], Mapping[str, tuple[str, tuple, Any]]]] = {
    "vectors in a sequence of fixed length": (
        Sequence(Tensor(shape=(2,), dtype=np.float32), length=3),
        {FLAT: NUMBERS, ROWS: [3, 3, 3]},
        {"steps/x": ("tensor", (3, 2), NUMBERS.reshape(3, 3, 2))},
    ),
    "images in a sequence of fixed length": (
        Sequence(Image(shape=(8, 8, 3)), length=2),
        {FLAT: IMAGES, ROWS: [2, 2, 2]},
        {
            "steps/x[0]": ("image", (8, 8, 3), IMAGES[0::2]),
            "steps/x[1]": ("image", (8, 8, 3), IMAGES[1::2]),
        },
    ),
    "images of no declared size in a sequence": (
        Sequence(Image(), length=1),
        {FLAT: IMAGES[:3], ROWS: [1, 1, 1]},
        {"steps/x[0]": ("image", (8, 8, 3), IMAGES[:3])},
    ),
    "images of no declared size": (
        Image(),
        {"steps/x": IMAGES[:3]},
        {"steps/x": ("image", (8, 8, 3), IMAGES[:3])},
    ),
    "a text in a tensor of one": (
        Tensor(shape=(1,), dtype=np.str_),
        {"steps/x": [b"a", b"b", b"c"]},
        {"steps/x": ("text", (), [b"a", b"b", b"c"])},
    ),
    "a text in a sequence of one": (
        Sequence(Text(), length=1),
        {FLAT: [b"a", b"b", b"c"], ROWS: [1, 1, 1]},
        {"steps/x": ("text", (), [b"a", b"b", b"c"])},
    ),
}


def having(toy: Toy, feature: Any, values: Mapping[str, Any]) -> Toy:
    """A source that declares `steps/x` and holds values under some keys."""
    toy = toy.declaring("steps/x", feature)
    for key, value in values.items():
        toy = toy.holding(key, value)
    return toy


@pytest.mark.parametrize("name", READ)
def test_what_has_one_reading_is_read(toy: Toy, tmp_path: Path, name: str) -> None:
    feature, values, expected = READ[name]
    source = having(toy, feature, values).open(tmp_path)
    _, _, episode = next(read_episodes(source, source.shards[0]))
    for key, (kind, shape, value) in expected.items():
        assert (source.keys[key].kind, source.keys[key].shape) == (kind, shape)
        found = episode[key]
        np.testing.assert_array_equal(
            found if isinstance(found, np.ndarray) else list(map(bytes, found)), value
        )
    assert {key for key in source.keys if key.startswith("steps/x")} == set(expected)


def test_a_sequence_of_another_length_than_declared_is_refused(toy: Toy, tmp_path: Path) -> None:
    feature = Sequence(Image(shape=(8, 8, 3)), length=2)
    source = having(toy, feature, {FLAT: IMAGES, ROWS: [2, 3, 1]}).open(tmp_path)
    with pytest.raises(SchemaError, match=r"steps/x\[0\]: expected sequences of 2; found one of 3"):
        next(read_episodes(source, source.shards[0]))


def test_the_size_of_images_is_that_of_the_first_record_that_can_be_read(
    toy: Toy, tmp_path: Path
) -> None:
    toy = toy.declaring("steps/x", Image()).holding("steps/x", [jpeg(7, size=16)] * 3)
    broken = {**toy.episodes[0], "steps/x": [b"no image"] * 3}
    source = dataclasses.replace(toy, episodes=(broken, *toy.episodes[1:])).open(tmp_path)
    assert source.keys["steps/x"].shape == (16, 16, 3)
    source.shards[0].path.unlink()
    assert open_source(str(source.directory)).keys["steps/x"].shape == (16, 16, 3)


def test_steps_that_are_a_sequence_are_read_as_a_dataset(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = toy.open(tmp_path / "dataset")
    monkeypatch.setattr(tfds.features, "Dataset", Sequence)
    directory = toy.write(tmp_path / "sequence")
    monkeypatch.undo()
    assert '"sequence"' in (directory / "features.json").read_text()
    assert open_source(str(directory)).keys == expected.keys


def test_steps_that_are_no_dictionary_are_refused_by_name(toy: Toy, tmp_path: Path) -> None:
    features = {"steps": Tensor(shape=(3,), dtype=np.float32)}
    message = r"features.json, steps: expected a dataset or sequence of a dictionary; found Dataset"
    with pytest.raises((DataError, SchemaError), match=message):
        dataclasses.replace(toy, features=features).open(tmp_path)
