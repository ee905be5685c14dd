import pathlib
import pickle
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from pipeline.loading.loader_opening import open_loader
from pipeline.loading.window_reader import Buffers
from pipeline.memory import KEEP_FREED_MEMORY, REUSE_ARRAYS
from tests.processes import Command

SHAPE = (2, 1 << 20)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nothing_refers_to_it() -> None:
    buffers = Buffers()
    first = buffers.empty(SHAPE, "uint8")
    place = address(first)
    assert address(buffers.empty(SHAPE, "uint8")) != place
    del first
    assert address(buffers.empty(SHAPE, "uint8")) == place


@pytest.mark.parametrize(
    "view", [lambda a: a[1], lambda a: a.reshape(-1)[:5], lambda a: a.view(np.int8).T, memoryview]
)
def test_memory_is_kept_while_any_view_of_it_lives(view: object) -> None:
    buffers = Buffers()
    array = buffers.empty(SHAPE, "uint8")
    place, kept = address(array), view(array)
    del array
    assert address(buffers.empty(SHAPE, "uint8")) != place
    del kept
    assert place in {address(buffers.empty(SHAPE, "uint8"))}


def test_jax_arrays_are_never_overwritten() -> None:
    # On a CPU, jax may use the memory of a NumPy array instead of copying it.
    buffers = Buffers()
    placed = []
    for number in range(4):
        array = buffers.empty(SHAPE, "uint8")
        array[...] = number
        placed.append(jax.device_put(array))
        del array
    assert [np.unique(array).tolist() for array in placed] == [[0], [1], [2], [3]]


def test_dtype_and_shape_are_those_that_were_asked_for() -> None:
    buffers = Buffers()
    for shape, dtype in [
        (SHAPE, "float16"),
        ((4, 1 << 18), "float32"),
        ((3,), "int32"),
        ((), "bool"),
    ]:
        array = buffers.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_threads_never_share_memory() -> None:
    buffers = Buffers()
    faults: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            array = buffers.empty(SHAPE, "uint8")
            array[...] = number
            if (array != number).any():
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_where_counts_say_nothing_every_array_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loading.window_reader.sys.getrefcount", lambda block: 1)
    buffers = Buffers()
    kept = [buffers.empty(SHAPE, "uint8") for _ in range(3)]
    assert len({address(array) for array in kept}) == 3
    assert buffers.num_bytes == 0


@pytest.mark.parametrize("offset", [-1, 2])
def test_count_of_a_free_block_is_measured(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    count = sys.getrefcount
    monkeypatch.setattr(
        "pipeline.loading.window_reader.sys.getrefcount", lambda block: count(block) + offset
    )
    buffers = Buffers()
    array = buffers.empty(SHAPE, "uint8")
    place = address(array)
    assert address(buffers.empty(SHAPE, "uint8")) != place
    del array
    assert place in {address(buffers.empty(SHAPE, "uint8")), address(buffers.empty(SHAPE, "uint8"))}
    assert buffers.num_bytes == 2 * 2 * (1 << 20)


def test_another_process_starts_with_an_empty_pool() -> None:
    buffers = Buffers()
    assert buffers.empty((2048, 1024), "uint8").nbytes == buffers.num_bytes
    copy = pickle.loads(pickle.dumps(buffers))
    assert copy.num_bytes == 0
    assert copy.empty((2048, 1024), "uint8").nbytes == copy.num_bytes


_BATCHES = """
import sys
import jax, xxhash
from pipeline.data.dataset import open_dataset
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.memory import keep_freed_memory

keep_freed_memory()
path = sys.argv[1]
config = DataConfig((DatasetConfig(path),), "", ("image_primary", "image_wrist", "proprio"))
loader = Loader(config, 16, [open_dataset(path, config.keys)], lambda text: [len(text)])
batches = loader.batches()
for _ in range(12):
    batch = next(batches)
    # Hashed here: the fingerprint of the loader is taken before a block might be reused too early.
    print(*(xxhash.xxh3_64_hexdigest(leaf.tobytes()) for leaf in jax.tree.leaves(batch.arrays)))
"""


def test_batches_are_the_same_where_no_memory_is_reused(mini_dataset: pathlib.Path) -> None:
    lines = [
        Command(
            "tests.code",
            _BATCHES,
            mini_dataset,
            env={REUSE_ARRAYS: value, KEEP_FREED_MEMORY: value},
        )
        .finish()
        .stdout.splitlines()
        for value in ("1", "0")
    ]
    assert lines[0] == lines[1]
    assert len(set(lines[0])) == 12


def test_reads_of_any_number_of_steps_leave_no_memory_in_the_pool(
    mini_dataset: pathlib.Path,
) -> None:
    loader = open_loader(mini_dataset, batch_size=8, observations=["image_primary"])
    for num_steps in range(24, 28):
        images = loader.read(0, range(num_steps))["observation"]["image_primary"]
        assert images.nbytes == num_steps * 128 * 128 * 3 > 1 << 20
    window_reader: Any = loader.transforms()[0]
    assert window_reader.buffers.num_bytes == 0


def test_the_pool_is_switched_off_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REUSE_ARRAYS, "0")
    buffers = Buffers()
    assert buffers.empty(SHAPE, "uint8").shape == SHAPE
    assert buffers.num_bytes == 0
