"""Tokens at rollout are the same as in the dataset's column."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from converters.vggt.token_job import TokenJob, TokenSettings, add_tokens
from pipeline.data.dataset import open_dataset
from pipeline.data.images import decode_image
from pipeline.data.token_provenance import Keep
from pipeline.errors import UserError
from pipeline.loading.data_config import DatasetConfig
from tests.train.conftest import untrained, with_data
from train.checkpoints.checkpoint_store import Checkpoint
from train.octo.octo_config import VGGTTokenizerConfig
from train.policy import Policy
from train.policy.rollout_tokens import encoder_of
from train.train_config import TrainConfig

KEY = "observation/flat"
STEPS = (0, 20, 52)


@pytest.fixture(scope="module")
def tokened(short_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The dataset with a column of pooled tokens of the wrist camera."""
    out = pathlib.Path(shutil.copytree(short_dataset, tmp_path_factory.mktemp("tokens") / "mini"))
    settings = TokenSettings(
        name="flat", cameras=("image_wrist",), keep=Keep("pool", 4), image_size=(56, 56)
    )
    add_tokens(TokenJob.load(open_dataset(str(out)), settings, "random:tiny", 16))
    both = TokenSettings(name="deep", layers=(0, 1), image_size=(56, 56))
    add_tokens(TokenJob.load(open_dataset(str(out)), both, "random:tiny", 16))
    return out


def reading(config: TrainConfig, dataset: pathlib.Path, tokens: VGGTTokenizerConfig) -> TrainConfig:
    """The config of a model that reads a camera and tokens."""
    return with_data(
        config,
        datasets=(DatasetConfig(str(dataset)),),
        observations=("image_primary", *tokens.keys),
        model={"images": config.model.images[:1], "lowdims": (), "vggt": tokens},
    )


@pytest.fixture(scope="module")
def checkpoint(tokened: pathlib.Path, policy_config: TrainConfig) -> Checkpoint:
    tokens = VGGTTokenizerConfig(num_tokens=4, token_dim=64, observation_key="flat")
    return untrained(reading(policy_config, tokened, tokens))


def test_tokens_are_those_of_the_column(tokened: pathlib.Path, checkpoint: Checkpoint) -> None:
    encoder = encoder_of(checkpoint)
    assert encoder is not None
    assert encoder.cameras == ("image_wrist",)
    dataset = open_dataset(str(tokened))
    images = np.empty((len(STEPS), 128, 128, 3), np.uint8)
    for n, step in enumerate(STEPS):
        record = dataset.columns["steps"].read(step)
        decode_image(record["observation/image_wrist"], images[n], "here")
    stored = np.stack([np.asarray(dataset.columns["flat"].read(step)[KEY]) for step in STEPS])
    found = encoder([images])
    assert list(found) == [KEY]
    assert found[KEY].dtype == stored.dtype == np.float16
    assert np.abs(stored).max() > 0.1
    np.testing.assert_allclose(found[KEY], stored, rtol=2e-3, atol=2e-3)


def test_a_policy_of_a_run_makes_the_tokens_of_several_features_at_once(
    tokened: pathlib.Path, policy_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = VGGTTokenizerConfig(21, 64, "deep_0", more_layers=("deep_1",))
    checkpoint = untrained(reading(policy_config, tokened, tokens))
    monkeypatch.setattr("train.policy.policy.read_run", lambda directory, step: checkpoint)
    policy = Policy.from_run("runs/tokens", weights="random:tiny")
    assert list(policy.expected) == ["image_primary"]
    compiled = []

    def note(event: str, *_: float, **__: str) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    policy.warm_up()
    assert compiled
    compiled.clear()
    dataset = open_dataset(str(tokened))
    image = np.empty((128, 128, 3), np.uint8)
    decode_image(dataset.columns["steps"].read(7)["observation/image_primary"], image, "here")
    policy.reset(0, "pick up the bowl")
    assert policy.infer({0: {"image_primary": image}})[0].shape == (4, 7)
    jax.monitoring.unregister_event_duration_listener(note)
    assert compiled == []  # the first answer is as fast as the others
    assert policy.latency.num_calls == 1
    timing = policy.timing
    assert min(timing.tokens_ms, timing.instruction_ms, timing.model_ms) > 0
    whole_ms = policy.latency.mean_ms
    assert timing.tokens_ms + timing.instruction_ms + timing.model_ms < whole_ms
    seen = policy.batch([0])["observation"]
    stored = dataset.columns["deep"].read(7)
    for name in ("deep_0", "deep_1"):
        wanted = np.asarray(stored[f"observation/{name}"])
        np.testing.assert_allclose(seen[name][0, -1], wanted, rtol=2e-3, atol=2e-3)


def test_weights_may_have_moved(checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    assert encoder_of(checkpoint, source="random:tiny") is not None
    with pytest.raises(UserError, match="lost"):
        encoder_of(checkpoint, source=str(tmp_path / "lost"))


def test_a_policy_that_reads_no_tokens_needs_no_encoder(policy_config: TrainConfig) -> None:
    assert encoder_of(untrained(policy_config)) is None


def test_tokens_of_unknown_origin_are_refused(checkpoint: Checkpoint) -> None:
    datasets = {path: values | {"encoders": {}} for path, values in checkpoint.datasets.items()}
    with pytest.raises(UserError, match=r"observation/flat: expected how its tokens were made"):
        encoder_of(dataclasses.replace(checkpoint, datasets=datasets))
