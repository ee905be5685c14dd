"""The simulator of this machine; without one, tests are skipped with the reason."""

import pathlib
from collections.abc import Iterator

import pytest

from converters.mappings import LIBERO
from pipeline.errors import UserError
from pipeline.libero.environment import OBSERVATIONS, LiberoEnv
from pipeline.libero.installation import Installation, find_installation
from pipeline.libero.suites import Task, read_tasks

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
    env = LiberoEnv(installation, LIBERO.conventions, observations=OBSERVATIONS)
    yield env
    env.close()
