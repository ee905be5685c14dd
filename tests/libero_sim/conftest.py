"""The simulator of this machine; without one, tests are skipped with the reason."""

import pathlib
from collections.abc import Iterator

import pytest

from converters.mapping.mapping_registry import registered
from pipeline.errors import UserError
from tests.libero_sim.commands import run
from train.evaluate.libero.environment import OBSERVATIONS, LiberoEnv
from train.evaluate.libero.installation import Installation, find_installation
from train.evaluate.libero.suites import Task, read_tasks

_SETTINGS = """
import dataclasses
import importlib.util

from pipeline.loading.data_config import DatasetConfig

spec = importlib.util.spec_from_file_location("tiny", "tests/data/tiny_config.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
config = tiny.UNTOKENED
data = dataclasses.replace(config.data, datasets=(DatasetConfig({dataset!r}),))
VARIANTS = {{
    "default": dataclasses.replace(
        config, data=data, num_steps=1, save_interval=1, save_dir={save_dir!r}
    )
}}
"""
_SHARED_ASSETS = pathlib.Path(__file__).parents[3] / "shared" / "libero" / "assets"


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The simulator, with the assets of `LIBERO_ASSETS`, the package or the folder `shared`."""
    try:
        return find_installation()
    except UserError as error:
        try:
            return find_installation(str(_SHARED_ASSETS))
        except UserError:
            pytest.skip(str(error))


@pytest.fixture(scope="session", params=["libero_spatial", "libero_object"])
def task(request: pytest.FixtureRequest, installation: Installation) -> Task:
    """The first task of each suite."""
    return read_tasks(installation.root, request.param)[0]


@pytest.fixture(scope="session")
def env(installation: Installation) -> Iterator[LiberoEnv]:
    """One simulator in this process, with the conventions of the published sets."""
    env = LiberoEnv(installation, registered("libero").conventions, observations=OBSERVATIONS)
    yield env
    env.close()


@pytest.fixture(scope="session")
def untrained_run(
    mini_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A run of one step on the bundled set: chunks of 4, cameras of 128x128."""
    folder = tmp_path_factory.mktemp("untrained")
    config, save_dir = folder / "config.py", folder / "run"
    config.write_text(_SETTINGS.format(dataset=str(mini_dataset), save_dir=str(save_dir)))
    run("train.run", "--config", config)
    return save_dir
