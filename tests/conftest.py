"""Settings of the whole test suite, and the bundled data that several tests read."""

import contextlib
import gc
import io
import json
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

os.environ["JAX_PLATFORMS"] = "cpu"
# huggingface_hub reads these once: no token of this machine, and plain requests, without Xet.
os.environ |= {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_XET": "1"}
# Two devices. Compiling is most of what the tests do, so they compile without LLVM's optimisations,
# in a third of the time; recorded values hold either way. TEST_XLA_FLAGS comes last and wins:
# make test-all compiles as users do.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1 " + os.environ.get("TEST_XLA_FLAGS", "")
)

import jax
import psutil
import pytest
from etils import epath
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.registry import _registry as fsspec_implementations
from hypothesis import HealthCheck, settings

from tests.compiled import share_contexts, spare_garbage_collection, write_programs_whole
from tests.hub_server import HubServer, serving
from tests.type_checks import check_shapes_where_they_are_named

check_shapes_where_they_are_named()  # before the packages are imported

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples everywhere, and no clock: a busy machine is slow, not wrong.
settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

_DATA = pathlib.Path(__file__).parent / "data"
_MINI_RLDS = _DATA / "libero_mini" / "1.0.0"
_NOBODY = 65534
_LONGEST = (
    "train/test_scale.py",
    "pipeline/vggt/test_aggregator.py",  # meanwhile the first compiles what test_run.py runs
    "train/test_run.py",
    "train/octo/test_fusion.py",
    "converters/test_bad_input.py",
    "converters/vggt/test_token_job.py",
    "converters/job/test_kills.py",
    "train/octo/test_model.py",
    "examples/test_notebooks.py",
    "train/update/test_train_step.py",
    "train/test_own_parts.py",
    "pipeline/loading/test_loader.py",
    "train/octo/heads/test_regression.py",
    "converters/export/test_rlds_export.py",
    "train/policy/test_policy.py",
    "pipeline/vggt/test_encoder.py",
    "pipeline/inspection/test_dataset_figure.py",
)
"""Test files by CPU time; the others take less than half a minute each."""
_SHARED = pathlib.Path(__file__).parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Keeps compiled programs: many tests run the same small model, and compiling is most of it.

    And lets Ctrl-C reach the commands that tests start, whatever this process inherited: a shell
    without job control starts what runs in its background without it.

    All processes of the tests share them.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    write_programs_whole()
    share_contexts()
    # Off with `-p no:cacheprovider`: then each process compiles for itself.
    if config.pluginmanager.hasplugin("cacheprovider"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def reseal() -> Callable[[pathlib.Path], None]:
    """Writes the checksums of a dataset directory again, as if it had been written as it is."""

    from pipeline.files import json_checksum

    def write(directory: pathlib.Path) -> None:
        manifest = json.loads((directory / "dataset.json").read_text())
        manifest.pop("checksum")
        statistics = json.loads((directory / "statistics.json").read_text())
        manifest["statistics_checksum"] = json_checksum(statistics)
        manifest["checksum"] = json_checksum(manifest)
        (directory / "dataset.json").unlink()  # it may be a link to that of another test
        (directory / "dataset.json").write_text(json.dumps(manifest))

    return write


def pytest_collection_finish() -> None:
    """Leaves what collecting the tests has imported out of the garbage collector's rounds."""
    gc.collect()
    spare_garbage_collection()


@pytest.fixture(scope="session")
def bound() -> dict[str, float]:
    """The bytes up to which a process may grow before it gives compiled programs back."""
    return {"num_bytes": 3e9}


@pytest.fixture(autouse=True)
def bounded_memory(bound: dict[str, float]) -> Iterator[None]:
    """Gives back what compiled programs hold where a process has grown beyond a bound."""
    yield
    process = psutil.Process()
    if process.memory_info().rss > bound["num_bytes"]:
        jax.clear_caches()
        # What stays is kept for what comes: clearing again after each test would compile it again.
        bound["num_bytes"] = max(3e9, process.memory_info().rss + 1e9)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that processes with a file each end at about the same time.

    Those of several processes wait for each other, which they do best beside another file.
    """
    folder = pathlib.Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def mini_rlds() -> pathlib.Path:
    """The bundled RLDS set: 4 episodes of 102, 124, 123 and 106 steps, 2 tasks, 2 shards."""
    return _MINI_RLDS


@pytest.fixture(scope="session")
def mini_dataset(mini_rlds: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The bundled set, converted once; copy it before corrupting it."""
    # Not above: the process that hands out the tests would import them, too.
    from converters.job.convert import convert
    from converters.mapping.mapping_registry import registered
    from converters.sources.open_source import open_source

    directory = tmp_path_factory.mktemp("mini") / "libero_mini"
    convert(open_source(str(mini_rlds)), directory, registered("libero"))
    return directory


_SHORT_LENGTHS = (15, 11, 14, 13)
"""Steps of the episodes of the cut set; both shards have 26 or 27, no multiple of a batch."""


@pytest.fixture(scope="session")
def short_rlds(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The bundled RLDS set, its episodes cut short, for tests that read or encode every step."""
    from tests.converters.cut_source import cut_source

    out = tmp_path_factory.mktemp("cut") / "libero_mini" / "1.0.0"
    return cut_source(_MINI_RLDS, out, iter(_SHORT_LENGTHS))


@pytest.fixture(scope="session")
def short_dataset(
    short_rlds: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The cut set, converted once; copy it before corrupting it."""
    from converters.job.convert import convert
    from converters.mapping.mapping_registry import registered
    from converters.sources.open_source import open_source

    directory = tmp_path_factory.mktemp("short") / "libero_mini"
    convert(open_source(str(short_rlds)), directory, registered("libero"))
    return directory


class _Upload(MemoryFile):
    """A file that is in the store when it has been closed, not before."""

    def __init__(self, fs: MemoryFileSystem, path: str) -> None:
        super().__init__(fs, path)
        self._is_stored = False

    def close(self) -> None:
        if not self._is_stored:
            self.fs.store[self.path] = MemoryFile(self.fs, self.path, self.getvalue())
            self._is_stored = True


class _ObjectStore(MemoryFileSystem):
    """Objects in memory under `s3://`; as in a bucket, a folder is no more than a prefix."""

    protocol = "s3"
    root_marker = ""
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return os.fspath(path).removeprefix("s3://").strip("/")

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: FBT001, FBT002
        """Nothing: folders are not stored."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing: folders are not stored."""

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        path = self._strip_protocol(path)
        if mode == "wb":
            return _Upload(self, path)
        if path not in self.store:
            raise FileNotFoundError(path)
        return io.BytesIO(self.store[path].getvalue())


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[epath.Path]:
    """An empty bucket `s3://bucket` in the memory of this process."""
    monkeypatch.setitem(fsspec_implementations, "s3", _ObjectStore)
    _ObjectStore.clear_instance_cache()
    _ObjectStore.store.clear()
    fsspec_backend._get_filesystem.cache_clear()
    yield epath.Path("s3://bucket")
    fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub on this machine, which the environment names; it and the cache are empty."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OCTOGRAIN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def as_nobody(tmp_path: pathlib.Path) -> Callable[[], AbstractContextManager[None]]:
    """A block under a user whom permissions hold back; root heeds none.

    `tmp_path` stays within the reach of that user.
    """

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        user = os.geteuid()
        if user == 0:
            os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    if os.geteuid() == 0:
        # They stay open: the folders above are those of other workers' tests as well.
        for folder in (tmp_path, *tmp_path.parents):
            mode = folder.stat().st_mode & 0o7777
            if not mode & 0o001:
                folder.chmod(mode | 0o011)
    return block


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
