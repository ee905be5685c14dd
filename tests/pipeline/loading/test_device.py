import contextlib
import hashlib
import json
import pathlib
import socket
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.batch import LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.device import (
    batch_sharding,
    host_shard,
    make_mesh,
    one_ahead,
    replicated,
    shape_structs,
)
from pipeline.loading.loader import LoadedBatch, Loader
from pipeline.loading.samples.sampling import HostShard
from tests.processes import Command

ROOT = pathlib.Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden" / "octo" / "data"


def counted(num_batches: int, taken: list[int]) -> Iterator[LoadedBatch]:
    """Batches that hold their position; notes each that was asked for."""
    for position in range(num_batches):
        taken.append(position)
        yield LoadedBatch({"x": np.full((4, 2), position, np.int32)}, f"{position:08x}", position)


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5])
def test_one_ahead_keeps_the_order_and_loses_none(num_batches: int) -> None:
    sharding = batch_sharding(make_mesh(), 4)
    pairs = list(one_ahead(counted(num_batches, []), sharding))
    assert [batch.position for _, batch in pairs] == list(range(num_batches))
    for arrays, batch in pairs:
        assert arrays["x"].sharding == sharding
        np.testing.assert_array_equal(arrays["x"], batch.arrays["x"])


def test_next_batch_is_taken_before_this_one_is_given() -> None:
    taken: list[int] = []
    ahead = one_ahead(counted(5, taken), batch_sharding(make_mesh(), 4))
    next(ahead)
    assert taken == [0, 1]


def test_batch_is_split_over_the_devices() -> None:
    placed = jax.device_put(np.zeros((4, 2), np.float32), batch_sharding(make_mesh(), 4))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2, 2), (2, 2)]
    whole = jax.device_put(np.zeros((4, 2), np.float32), replicated(make_mesh()))
    assert [shard.data.shape for shard in whole.addressable_shards] == [(4, 2), (4, 2)]


def failing_after(num_batches: int) -> Iterator[LoadedBatch]:
    yield from counted(num_batches, [])
    raise UserError(where="record 3", expected="a", found="b", remedy="c")


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_batches_before_a_failure_are_given_before_it_is_raised(num_batches: int) -> None:
    ahead = one_ahead(failing_after(num_batches), batch_sharding(make_mesh(), 4))
    for position in range(num_batches):
        assert next(ahead)[1].position == position
    with pytest.raises(UserError, match="record 3: expected a"):
        next(ahead)


def test_single_process_makes_the_whole_batch() -> None:
    shard = host_shard(batch_sharding(make_mesh(), 4), 4)
    assert shard == HostShard(0, 1)
    assert shard.rows(4) == range(4)


_PROCESS = """
import hashlib, json, sys
import jax
import numpy as np

if __name__ == "__main__":
    port, index, dataset = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    from pipeline.data.dataset import open_dataset
    from pipeline.loading import device
    from pipeline.loading.data_config import DataConfig, DatasetConfig
    from pipeline.loading.loader import Loader

    sharding = device.batch_sharding(device.make_mesh(), 8)
    config = DataConfig((DatasetConfig(dataset),), "", ("image_primary", "proprio"))
    shard = device.host_shard(sharding, 8)
    loader = Loader(config, 8, [open_dataset(dataset)], lambda text: [7], shard)
    batches = loader.batches()
    arrays, _ = next(device.one_ahead(batches, sharding))
    batches.close()
    whole = jax.jit(lambda b: b, out_shardings=device.replicated(sharding.mesh))(arrays)
    digests = jax.tree.map(lambda x: hashlib.sha256(np.asarray(x).tobytes()).hexdigest(), whole)
    print(json.dumps({"shape": arrays["action"].shape, "digests": digests}))
"""


def test_two_processes_make_the_global_batch_of_one(mini_dataset: pathlib.Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [Command("tests.code", _PROCESS, port, index, mini_dataset) for index in range(2)]
    lines = [process.finish().stdout.splitlines() for process in both]
    outputs = [json.loads(of_process[-1]) for of_process in lines]
    assert outputs[0] == outputs[1]
    assert outputs[0]["shape"] == [8, 2, 4, 7]
    config = DataConfig((DatasetConfig(str(mini_dataset)),), "", ("image_primary", "proprio"))
    loader = Loader(config, 8, [open_dataset(str(mini_dataset))], lambda text: [7])
    with contextlib.closing(loader.batches()) as batches:
        expected = next(batches).arrays
    digests = jax.tree.map(lambda x: hashlib.sha256(x.tobytes()).hexdigest(), expected)
    assert outputs[0]["digests"] == digests


@pytest.mark.parametrize(("batch_size", "remedy"), [(5, 4), (3, 2), (1, 2)])
def test_uneven_batch_is_refused_with_one_that_fits(batch_size: int, remedy: int) -> None:
    message = f"a multiple of 2: 2, the number of devices; found {batch_size}. Take {remedy}."
    with pytest.raises(UserError, match=message):
        batch_sharding(make_mesh(), batch_size)


def test_batch_that_is_computed_in_parts_is_divided_by_devices_and_parts() -> None:
    message = "a multiple of 8: 2, the number of devices times 4, optimizer.accumulation_steps"
    with pytest.raises(UserError, match=message):
        batch_sharding(make_mesh(), 20, num_parts=4)
    assert batch_sharding(make_mesh(), 16, num_parts=4).shard_shape((16, 3)) == (8, 3)


def test_mesh_has_devices_along_fsdp_that_divide_all() -> None:
    assert dict(make_mesh(2).shape) == {"data": 1, "fsdp": 2}
    with pytest.raises(UserError, match=r"fsdp_devices: expected a divisor of 2.*Take one of 1, 2"):
        make_mesh(3)


def test_structs_are_the_nested_contract() -> None:
    sharding = batch_sharding(make_mesh(), 4)
    spec = {"a/b": LeafSpec("float16", (4, 3)), "c": LeafSpec("bool", (4,))}
    assert shape_structs(spec, sharding) == {
        "a": {"b": jax.ShapeDtypeStruct((4, 3), jnp.float16, sharding=sharding)},
        "c": jax.ShapeDtypeStruct((4,), jnp.bool_, sharding=sharding),
    }
