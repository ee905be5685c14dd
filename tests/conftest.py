"""Settings of the whole test suite, and the bundled data that several tests read."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import pytest

from converters.convert import convert
from converters.mappings import LIBERO
from converters.rlds.source import open_source

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_DATA = pathlib.Path(__file__).parent / "data"
_SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def mini_rlds() -> pathlib.Path:
    """The bundled RLDS set: 4 episodes of 102, 124, 123 and 106 steps, 2 tasks, 2 shards."""
    return _DATA / "libero_mini" / "1.0.0"


@pytest.fixture(scope="session")
def mini_dataset(mini_rlds: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The bundled set, converted once; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("mini") / "libero_mini"
    convert(open_source(str(mini_rlds)), directory, LIBERO)
    return directory


@pytest.fixture(scope="session")
def vocabulary_path() -> pathlib.Path:
    """A small SentencePiece model with T5's special ids; a word is a piece."""
    return _DATA / "vocabulary.model"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Larger data beside the repository; the tests that read it are skipped without it."""
    if not _SHARED.exists():
        pytest.skip("the folder `shared` beside the repository is missing")
    return _SHARED
