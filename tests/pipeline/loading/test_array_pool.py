import pickle
import sys
import threading

import jax
import numpy as np
import pytest

from pipeline.loading.window_reader import Buffers

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
