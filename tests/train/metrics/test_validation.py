import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.device import batch_sharding, make_mesh
from pipeline.loading.loader import Loader
from pipeline.loading.samples.splits import episode_places
from pipeline.loading.text import load_vocabulary
from tests.parameters import random_params
from train.metrics.validation import Validator
from train.metrics.validation_files import (
    EpisodePrediction,
    ValidationMetrics,
    append_validation,
    drop_validation,
    read_episode,
    read_validation,
)
from train.update.train_step import make_language_table


@pytest.fixture(scope="module")
def config(tiny_config_path, mini_dataset):
    from train.flags import load_config
    from train.train_config import ValidationConfig

    config = load_config(f"{tiny_config_path}:shallow")
    data = dataclasses.replace(
        config.data, datasets=(DatasetConfig(str(mini_dataset)),), validation_fraction=0.3
    )
    return dataclasses.replace(
        config, data=data, validation=ValidationConfig(num_batches=3), batch_size=4
    )


@pytest.fixture(scope="module")
def dataset(mini_dataset):
    return open_dataset(str(mini_dataset))


def loader_of(config, *datasets):
    encode = load_vocabulary(config.data.vocabulary).EncodeAsIds
    sizes = config.model.image_sizes
    return Loader(config.data, config.batch_size, datasets, encode, image_sizes=sizes)


def validator_of(config, *datasets):
    sharding = batch_sharding(make_mesh(), config.batch_size)
    return Validator(config, loader_of(config, *datasets), sharding)


@pytest.fixture(scope="module")
def validator(config, dataset):
    return validator_of(config, dataset)


@pytest.fixture(scope="module")
def model(config, validator):
    """(parameters, language table) of a random model."""
    params = random_params(config.model)
    tasks = validator._loader.tasks
    return params, jax.jit(lambda params: make_language_table(config.model, params, tasks))(params)


def test_a_model_without_cameras_has_an_episode_without_frames(config, dataset):
    vggt = dataclasses.replace(config.model.vggt, fusion="only")
    data = dataclasses.replace(config.data, observations=("vggt_tokens",))
    blind = dataclasses.replace(
        config, data=data, model=dataclasses.replace(config.model, vggt=vggt)
    )
    validator = validator_of(blind, dataset)
    assert validator._frames(np.arange(3)) == ()


def test_held_out_samples_have_the_statistics_of_the_training_mixture(
    config, dataset, short_dataset
):
    parts = (*config.data.datasets, DatasetConfig(str(short_dataset)))
    data = dataclasses.replace(config.data, datasets=parts, statistics="mixture")
    mixed = dataclasses.replace(config, data=data)
    datasets = (dataset, open_dataset(str(short_dataset)))
    training, held_out = loader_of(mixed, *datasets), validator_of(mixed, *datasets)._loader
    assert held_out.config.split == "validation"
    assert held_out.num_steps + training.num_steps == sum(one.num_steps for one in datasets)
    # A loader of its own would merge by these.
    assert abs(held_out.shares[0] - training.shares[0]) > 0.01
    for key, normalizer in training.normalizers.items():
        np.testing.assert_array_equal(held_out.normalizers[key].offset, normalizer.offset)
        np.testing.assert_array_equal(held_out.normalizers[key].scale, normalizer.scale)


def test_the_same_samples_give_the_same_numbers_every_time(validator, model):
    first, again = (validator.run(*model, step) for step in (5, 10))
    assert (first.step, again.step) == (5, 10)
    assert dataclasses.replace(again, step=5) == first
    assert first.num_samples == 12
    assert list(first.by_dim) == ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]
    np.testing.assert_allclose(first.action_error, np.mean(list(first.by_dim.values())), rtol=1e-6)


def test_errors_are_those_of_the_sampled_chunks(validator, model, config):
    found = validator.run(*model, 0)
    # A random model's samples are within the bound, and the tasks are those held out.
    assert 0 < found.action_error < 2 * config.model.head.max_action
    tasks = set(validator._loader.tasks.texts)
    assert set(found.by_task) <= tasks
    assert found.loss > 0


def test_the_episode_is_one_that_is_held_out(validator, model, dataset, tmp_path):
    found = validator.episode(*model)
    held_out = np.flatnonzero(episode_places(dataset) < 0.3)
    assert found.episode == held_out[0]
    assert found.is_held_out
    steps = np.diff(dataset.episode_starts)[found.episode]
    assert found.actions.shape == (steps, 7)
    assert found.chunks.shape == (steps, 4, 7)
    recorded = dataset.columns["episodes"].read(found.episode)["action"]
    np.testing.assert_allclose(found.actions[:, :6], recorded[:, :6], atol=1e-5)
    assert set(np.unique(found.actions[:, 6])) <= {0.0, 1.0}  # standardised: 1 = open
    assert [images.shape for images in found.frames] == [(6, 128, 128, 3)]
    assert found.frame_steps.tolist()[0] == 0
    assert found.frame_steps.tolist()[-1] == steps - 1
    found.save(tmp_path)
    again = read_episode(tmp_path)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))


def test_images_of_cameras_of_two_sizes_are_kept_as_they_are(tmp_path):
    sizes = [(2, 48, 64, 3), (2, 24, 32, 3)]
    frames = tuple(np.full(size, number, np.uint8) for number, size in enumerate(sizes))
    actions, chunks = np.zeros((3, 1), np.float32), np.zeros((3, 2, 1), np.float32)
    steps = np.array([0, 2], np.int32)
    parts = ("lift", ("x",), actions, chunks, frames, steps)
    EpisodePrediction("d", 0, True, *parts).save(tmp_path)  # noqa: FBT003
    again = read_episode(tmp_path)
    assert again is not None
    assert [images.shape for images in again.frames] == sizes
    assert [int(images.max()) for images in again.frames] == [0, 1]


def test_an_episode_of_an_earlier_release_is_read(tmp_path):
    both = np.stack([np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 8, 8, 3), np.uint8)], axis=1)
    arrays = {"actions": np.zeros((3, 1)), "chunks": np.zeros((3, 2, 1)), "frame_steps": [0, 2]}
    texts = {"dataset": "d", "episode": 0, "is_held_out": True, "task": "lift", "dims": ["x"]}
    np.savez(tmp_path / "episode.npz", frames=both, **arrays, **texts)
    again = read_episode(tmp_path)
    assert again is not None
    assert [images.shape for images in again.frames] == [(2, 8, 8, 3)] * 2
    assert [int(images.max()) for images in again.frames] == [0, 1]


def metrics(step: int) -> ValidationMetrics:
    return ValidationMetrics(step, 1.5, 0.25, {"dx": 0.25}, {"open the drawer": 0.25}, 8)


def test_lines_of_steps_that_are_taken_again_are_replaced(tmp_path):
    for step in (5, 10, 5):
        append_validation(tmp_path, metrics(step))
    (found,) = read_validation(tmp_path)
    # The error of a constant action is nan, which equals nothing.
    assert repr(found) == repr(metrics(5))
    append_validation(tmp_path, metrics(10))
    assert [one.step for one in read_validation(tmp_path)] == [5, 10]


def test_a_resumed_run_drops_the_lines_of_steps_that_are_taken_again(tmp_path):
    drop_validation(tmp_path, after=0)
    assert not (tmp_path / "validation.jsonl").exists()
    for step in (5, 10, 15):
        append_validation(tmp_path, metrics(step))
    drop_validation(tmp_path, after=10)
    assert [one.step for one in read_validation(tmp_path)] == [5, 10]


def test_a_loss_that_is_no_number_comes_back_as_nan(tmp_path):
    append_validation(tmp_path, dataclasses.replace(metrics(2), loss=float("nan")))
    assert '"loss": null' in (tmp_path / "validation.jsonl").read_text()
    (found,) = read_validation(tmp_path)
    assert np.isnan(found.loss)
    assert found.action_error == metrics(2).action_error


def test_nothing_is_read_where_there_is_nothing(tmp_path):
    assert read_validation(tmp_path) == []
    assert read_episode(tmp_path) is None


def test_a_corrupt_line_is_named(tmp_path: pathlib.Path):
    good = json.dumps(dataclasses.asdict(metrics(5)))
    (tmp_path / "validation.jsonl").write_text(f'{good}\n{{"step": 6}}\n')
    with pytest.raises(DataError, match=r"validation.jsonl, line 2: .*Delete that line"):
        read_validation(tmp_path)
