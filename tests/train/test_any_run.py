"""A run on datasets that differ from LIBERO's in every way, up to its report and policy."""

import dataclasses
import json
import pathlib

import pytest

from pipeline.checksums import read_json
from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from tests.small_dataset import write_dataset
from train.checkpoints.checkpoint_store import read_checkpoint
from train.flags import Flags, load_config
from train.octo.octo_config import LowdimTokenizerConfig, RegressionConfig
from train.policy.parity import compare_episode
from train.policy.policy_spec import PolicySpec
from train.run import run
from train.train_config import AugmentConfig, TrainConfig, ValidationConfig, parse_config

NAMES = ("image_primary", "image_wrist", "proprio", "joints")
LOWDIM = {"action": (), "observation/proprio": (3,), "observation/joints": (2,)}


@pytest.fixture(scope="module")
def config(tiny_config_path: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A config of two datasets, each of whose cameras has its own size."""
    root = tmp_path_factory.mktemp("any")
    sizes = {"one": [(48, 64, 3), (24, 32, 3)], "two": [(20, 20, 3), (28, 24, 3)]}
    parts = []
    for name, (primary, wrist) in sizes.items():
        cameras = {"observation/image_primary": primary, "observation/image_wrist": wrist}
        path = write_dataset(root / name, LOWDIM | cameras, pixels=["observation/image_wrist"])
        parts.append(DatasetConfig(str(path)))
    config = load_config(f"{tiny_config_path}:untokened")
    primary = load_config(f"{tiny_config_path}:shallow").model.images[0]  # compiles faster
    wrist = dataclasses.replace(primary, name="wrist", observation_key="image_wrist", image_size=2)
    lowdims = (
        LowdimTokenizerConfig("proprio", "proprio", 3),
        LowdimTokenizerConfig("joints", "joints", 2),
    )
    head = RegressionConfig(action_dim=1, pooling="mean")
    data = dataclasses.replace(
        config.data,
        datasets=tuple(parts),
        observations=NAMES,
        conditioning="image_conditioned",
        validation_fraction=0.4,
    )
    return dataclasses.replace(
        config,
        data=data,
        model=dataclasses.replace(
            config.model, images=(primary, wrist), lowdims=lowdims, head=head, language=None
        ),
        augment=AugmentConfig(enabled=False),
        optimizer=dataclasses.replace(config.optimizer, decay_steps=None, frozen=()),
        finetuning_mode="head_only",
        num_steps=8,
        save_interval=8,
        validation=ValidationConfig(num_batches=1),
        save_dir=str(root / "run"),
    )


@pytest.fixture(scope="module")
def finished(config: TrainConfig) -> pathlib.Path:
    return run(Flags(config))


def test_a_run_with_cameras_of_many_sizes_ends_with_its_report(finished: pathlib.Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Frames of that episode: image_primary, image_wrist" in page
    assert page.count("image_wrist at step") == 6
    assert "episode.npz is missing" not in page


def test_it_is_complete(finished: pathlib.Path, config: TrainConfig) -> None:
    with pytest.raises(UserError, match="It is complete"):
        run(Flags(config, resume=True))


@pytest.mark.parametrize("place", [0, 1])
def test_its_policy_sees_what_it_was_trained_on(finished: pathlib.Path, place: int) -> None:
    checkpoint = read_checkpoint(finished)
    path = checkpoint.config.data.datasets[place].path
    spec = PolicySpec.of(checkpoint, path)
    assert spec.observed["image_primary"].shape == [(48, 64, 3), (20, 20, 3)][place]
    found = compare_episode(checkpoint, spec, open_dataset(path), 1)
    *inputs, action = found
    assert {one.key: one.max_difference for one in inputs} == dict.fromkeys(spec.leaves, 0.0)
    assert (action.key, action.steps) == ("action", [])
    types = {one.key: one.type for one in found}
    assert types["observation/image_wrist"] == "uint8[2,2,2,3]"
    assert types["task/image_primary"] == "uint8[4,4,3]"
    assert "joints" in spec.normalized


def test_a_run_of_an_earlier_release_keeps_its_inputs(
    finished: pathlib.Path, config: TrainConfig
) -> None:
    """Earlier releases normalised only proprio, and did not record it in the config."""
    text = json.dumps(read_json(finished / "config.json", remedy=""))
    before = parse_config(text.replace('"normalized": null,', ""), where="", remedy="")
    assert before.data.normalized == ("proprio",)
    assert dataclasses.replace(before.data, normalized=None) == config.data
    with pytest.raises(UserError, match=r"normalises: proprio, joints; found proprio\. Add --conf"):
        run(Flags(dataclasses.replace(config, data=before.data), resume=True))
