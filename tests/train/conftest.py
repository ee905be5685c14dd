"""Fixtures: configs and checkpoints of runs that are small enough for a test."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.loading.batch import LeafSpec
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.text import load_vocabulary
from tests.flax_parameters import check_parameters_once
from tests.train.programs import shared_by_runs
from train.checkpoints.checkpoint_checksums import digest_json
from train.checkpoints.checkpoint_store import Checkpoint, Checkpoints, Constants, read_checkpoint
from train.flags import load_config
from train.octo.octo_config import LowdimTokenizerConfig
from train.policy import Policy, PolicyConfig
from train.train_config import TrainConfig
from train.update.optimizer import make_optimizer
from train.update.train_state import TrainState, init_state

check_parameters_once()

TINY_CONFIG = pathlib.Path(__file__).parents[1] / "data" / "tiny_config.py"


@dataclasses.dataclass(frozen=True)
class TensorsConfig:
    """A tokenizer that reads tensors of float32, each by name and shape, and is never run."""

    read: tuple[tuple[str, int, int, int], ...]
    name: str = "tensors"
    tokens_per_step: int = 1

    @property
    def inputs(self) -> dict[str, LeafSpec]:
        return {name: LeafSpec("float32", tuple(shape)) for name, *shape in self.read}

    def make_tokenizer(self, dtype: str) -> Any:
        raise NotImplementedError


@pytest.fixture(scope="session")
def tiny_config_path() -> pathlib.Path:
    """A config file with the variants `default`, `untokened` and `shallow`."""
    return TINY_CONFIG


@pytest.fixture
def tiny_config(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> TrainConfig:
    """The tiny config on the bundled set, writing below `tmp_path`."""
    config = load_config(str(TINY_CONFIG))
    datasets = (DatasetConfig(str(mini_dataset)),)
    return dataclasses.replace(with_data(config, datasets=datasets), save_dir=str(tmp_path / "run"))


@pytest.fixture
def shallow_config(tiny_config: TrainConfig) -> TrainConfig:
    """The same with a stem of one layer: another batch or optimizer compiles in half the time."""
    return dataclasses.replace(tiny_config, model=load_config(f"{TINY_CONFIG}:shallow").model)


@pytest.fixture(scope="session")
def policy_config(mini_dataset: pathlib.Path) -> TrainConfig:
    """A tiny model of two cameras and the proprioception."""
    config = load_config(str(TINY_CONFIG))
    primary = config.model.images[0]
    wrist = dataclasses.replace(primary, name="wrist", observation_key="image_wrist", image_size=16)
    lowdims = (LowdimTokenizerConfig("proprio", "proprio", 8),)
    config = with_data(
        config,
        datasets=(DatasetConfig(str(mini_dataset)),),
        observations=("image_primary", "image_wrist", "proprio"),
        model={"images": (primary, wrist), "lowdims": lowdims, "vggt": None},
    )
    return dataclasses.replace(config, num_steps=2, save_interval=1)


@pytest.fixture(scope="session")
def policy_run(
    policy_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The directory of a run of that config with the checkpoints 1 and 2, of random parameters."""
    directory = tmp_path_factory.mktemp("policy") / "run"
    write_checkpoints(dataclasses.replace(policy_config, save_dir=str(directory)), (1, 2))
    return directory


@pytest.fixture(scope="session")
def served_policy(policy_run: pathlib.Path) -> Policy:
    """The policy of that run; to be served, it may have no clients of another test."""
    policy = Policy(read_checkpoint(policy_run))
    policy.warm_up()
    return policy


@pytest.fixture(scope="session")
def real_time_policy(policy_run: pathlib.Path) -> Policy:
    """The policy of that run, for real-time chunking; tests forget their environments."""
    return Policy(read_checkpoint(policy_run), config=PolicyConfig(real_time_chunking=True))


@pytest.fixture(scope="session", autouse=True)
def shared_programs() -> Iterator[None]:
    """Runs of the same model share its programs."""
    with shared_by_runs():
        yield


def with_data(config: TrainConfig, *, model: Mapping[str, Any] = {}, **data: Any) -> TrainConfig:
    """A config with other fields of its data config, and of its model config."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        model=dataclasses.replace(config.model, **model),
    )


def untrained(config: TrainConfig) -> Checkpoint:
    """A checkpoint of a run without training steps, with random parameters."""
    return dataclasses.replace(without_params(config), params=random_state(config).params)


def without_params(config: TrainConfig) -> Checkpoint:
    """The same without parameters, for what reads all but them."""
    return Checkpoint(
        step=0,
        config=config,
        params={},
        datasets=loader_of(config).describe_datasets(),
        vocabulary=pathlib.Path(config.data.vocabulary).read_bytes(),
    )


def write_checkpoints(config: TrainConfig, steps: Sequence[int]) -> None:
    """Writes checkpoints of random states as a run of the config would."""
    loader = loader_of(config)
    vocabulary = pathlib.Path(config.data.vocabulary).read_bytes()
    constants = Constants(config, loader.describe_datasets(), vocabulary)
    with Checkpoints(pathlib.Path(config.save_dir)) as checkpoints:
        for step in steps:
            checkpoints.save(random_state(config, step), loader.state(step), constants)


def rewrite_item(checkpoint: pathlib.Path, item: str, text: str) -> None:
    """Changes an item of a checkpoint, and its checksum with it."""
    (checkpoint / item / "metadata").write_text(text)
    path = checkpoint / "digests" / "metadata"
    digests = json.loads(path.read_text())
    digests["values"][item] = digest_json(json.loads(text))
    path.write_text(json.dumps(digests))


def random_state(config: TrainConfig, step: int = 0) -> TrainState:
    """A state with random parameters, other ones at each step; nothing is compiled for it."""
    shapes = _state_shapes(config)
    rng = np.random.default_rng(step)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype)

    return TrainState(
        cast(jax.Array, np.asarray(step, np.int32)),
        jax.tree.map(draw, shapes.params),
        jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.opt_state),
        jax.tree.map(draw, shapes.ema),
    )


_shapes: dict[str, TrainState] = {}


def _state_shapes(config: TrainConfig) -> TrainState:
    """Shape and dtype of a state's leaves; tracing the model for them takes half a second."""
    key = repr((config.model, config.optimizer, config.frozen))
    if key not in _shapes:
        optimizer = make_optimizer(config.optimizer)
        _shapes[key] = jax.eval_shape(lambda: init_state(config, optimizer))
    return _shapes[key]


def loader_of(config: TrainConfig) -> Loader:
    """The loader of a run of the config."""
    datasets = [open_dataset(part.path, config.data.keys) for part in config.data.datasets]
    encode = load_vocabulary(config.data.vocabulary).EncodeAsIds
    return Loader(config.data, config.batch_size, datasets, encode)
