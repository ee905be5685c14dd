import dataclasses
import gc
import json
import os
import pathlib
import re
import shutil
import socket
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.loading.loader_state import LoaderState
from tests.processes import Command
from tests.train.conftest import rewrite_item
from train.checkpoints.checkpoint_checksums import digest_arrays
from train.checkpoints.checkpoint_store import (
    Checkpoints,
    Constants,
    SavedStep,
    check_arrays,
    checkpoint_bytes,
    last_step,
    read_checkpoint,
    read_datasets,
    read_kept_config,
    read_loader_state,
)
from train.flags import load_config
from train.update.train_state import TrainState

STEPS = (5, 10, 15, 20, 25)
LEAVES_READS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""If one of the reads that Orbax started together fails, it leaves the others unfinished."""


@pytest.fixture(autouse=True)
def reads_are_left_to_no_other_test():
    gc.freeze()  # collecting visits what is made from here on, not all programs of other tests
    yield
    gc.collect()


def state(step: int, *, ema: bool = True) -> TrainState:
    params = {
        "head": {"kernel": jnp.full((3, 2), float(step))},
        "hf_model": {"kernel": jnp.ones((2,))},
    }
    average = {"head/kernel": jnp.full((3, 2), -float(step))} if ema else {}
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mu": jnp.zeros((3, 2))}, average)


@pytest.fixture(scope="module")
def constants(tiny_config_path):
    return Constants(load_config(str(tiny_config_path)), {"data/x": {"name": "x"}}, b"a vocabulary")


@pytest.fixture(scope="module")
def written(constants, tmp_path_factory):
    """A run directory with checkpoints of the steps 5 and 10, which no test may change."""
    directory = tmp_path_factory.mktemp("written")
    save(directory, constants, steps=(5, 10))
    return directory


@pytest.fixture
def run(written, tmp_path):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "run"))


def save(directory, constants, steps=STEPS, **options):
    ema = options.pop("ema", True)
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(state(step, ema=ema), LoaderState(step, "f", ()), constants)


def restore(directory):
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(0))
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(like)


def steps_of(directory):
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def test_the_last_ones_and_every_so_many_are_kept(tmp_path, constants):
    save(tmp_path, constants, keep_last=2, keep_every=10)
    assert steps_of(tmp_path) == [10, 20, 25]


def test_what_a_policy_needs_comes_back_from_a_step_alone(written, constants, tmp_path):
    shutil.copytree(written / "checkpoints" / "5", tmp_path / "checkpoints" / "5")
    found = read_checkpoint(tmp_path)
    assert found.step == 5
    assert found.config == constants.config
    assert found.datasets == read_datasets(tmp_path, 5) == {"data/x": {"name": "x"}}
    assert found.vocabulary == b"a vocabulary"
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), -5.0))
    np.testing.assert_array_equal(found.params["hf_model"]["kernel"], np.ones(2))
    assert isinstance(found.params["head"]["kernel"], np.ndarray)


def test_without_an_average_the_parameters_themselves_come_back(tmp_path, constants):
    save(tmp_path, constants, steps=(5,), ema=False)
    found = read_checkpoint(tmp_path)
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), 5.0))


def test_state_and_loader_continue_where_they_were(written):
    assert read_loader_state(written) == LoaderState(10, "f", ())
    jax.tree.map(np.testing.assert_array_equal, restore(written), state(10))


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path, written):
    with pytest.raises(UserError, match="expected a complete checkpoint; found none"):
        read_checkpoint(tmp_path)
    assert last_step(tmp_path) is None
    assert last_step(written) == 10
    message = r"a checkpoint of step 7; found the steps \[5, 10\]"
    with pytest.raises(UserError, match=message):
        read_checkpoint(written, 7)


def damage(path: pathlib.Path, kind: str) -> None:
    if kind == "no state":
        shutil.rmtree(path / "state")
    elif kind == "cut a little":
        largest = max((path / "state").rglob("d/*"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-40])
    elif kind == "cut short":
        for file in (path / "state").rglob("d/*"):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (path / "loader" / "metadata").write_text("{")
        (path / "config" / "metadata").write_text("{")


EARLIER = (
    "Check the disk and read it again; if it stays so, use step 5, the checkpoint before it; "
    r"or resume from that one once 10 is moved out of \S+/checkpoints\."
)


@LEAVES_READS
@pytest.mark.parametrize("kind", ["no state", "cut short", "cut a little", "no json"])
def test_a_corrupt_checkpoint_is_reported_with_its_remedy(run, kind):
    damage(run / "checkpoints" / "10", kind)
    message = rf"checkpoints/10: expected a whole checkpoint; found .*\. {EARLIER}"
    with pytest.raises(DataError, match=message):
        read_checkpoint(run)
    read = read_loader_state if kind == "no json" else restore
    with pytest.raises(DataError, match=message):
        read(run)
    shutil.rmtree(run / "checkpoints" / "10")
    assert read_checkpoint(run).step == 5


def test_where_no_earlier_checkpoint_is_there_the_run_begins_anew(run):
    damage(run / "checkpoints" / "5", "no json")
    message = r"no earlier step is there: start the run from scratch with --ov"
    with pytest.raises(DataError, match=message):
        read_checkpoint(run, 5)


def flipped(path: pathlib.Path, place: float, bits: int) -> bytes:
    """Returns a file's bytes with bits of one byte inverted, at a fraction of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= bits
    return bytes(data)


@LEAVES_READS
def test_an_inverted_byte_in_any_file_is_reported_or_changes_nothing(tmp_path, constants):
    """Random numbers, like a trained model's, are stored uncompressed: only a checksum notices."""
    kept = random_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(kept, LoaderState(10, "f", ()), constants)
    sound = contents(tmp_path)
    noticed = set()
    for path in sorted(p for p in (tmp_path / "checkpoints" / "10").rglob("*") if p.is_file()):
        before = path.read_bytes()
        for place, bits in ((0.5, 0xFF), (0.9, 0x01)):
            path.write_bytes(before)
            path.write_bytes(flipped(path, place, bits))
            found = contents_or_damage(tmp_path)
            if isinstance(found, str):
                assert found == str(tmp_path / "checkpoints" / "10")
                noticed.add(str(path.relative_to(found)))
            else:
                assert found == sound
        path.write_bytes(before)
    assert {item.partition("/")[0] for item in noticed} == {
        "config",
        "datasets",
        "digests",
        "loader",
        "state",
        "vocabulary",
    }
    assert contents(tmp_path) == sound


def contents_or_damage(directory):
    """Returns everything that can be read from a checkpoint, or the place that is corrupt."""
    try:
        return contents(directory)
    except DataError as error:
        return error.where


def random_state() -> TrainState:
    generator = np.random.default_rng(0)

    def of_shape(*shape):
        return jnp.asarray(generator.standard_normal(shape, np.float32))

    params = {"head": {"kernel": of_shape(48, 32)}, "hf_model": {"kernel": of_shape(64)}}
    moments = {"mu": of_shape(48, 32).astype(jnp.bfloat16)}
    average = {"head/kernel": of_shape(48, 32)}
    return TrainState(jnp.asarray(10, jnp.int32), params, moments, average)


def contents(directory):
    """Returns everything that can be read from a checkpoint, in a form to compare."""
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), random_state())
    found = read_checkpoint(directory)
    with Checkpoints(directory) as checkpoints:
        restored = checkpoints.restore(like)
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((found.params, restored))]
    loader = read_loader_state(directory)
    return arrays, loader, found.config, found.datasets, found.vocabulary


@pytest.mark.parametrize(
    ("kind", "name", "reads"),
    [
        ("arrays", "state/params/head/kernel", [restore, check_arrays, read_checkpoint]),
        ("values", "loader", [read_loader_state]),
        ("values", "config", [read_checkpoint]),
        ("values", "datasets", [read_datasets, read_checkpoint]),
    ],
)
def test_content_that_changed_is_named_with_the_step_before(run, kind, name, reads):
    path = run / "checkpoints" / "10" / "digests" / "metadata"
    digests = json.loads(path.read_text())
    saved = digests[kind][name][:5]
    digests[kind][name] = saved
    path.write_text(json.dumps(digests))
    before = rf"10: expected its content as saved; found {name} \({re.escape(saved)} then"
    message = rf"{before}, (\S+ )?[0-9a-f]{{32}} now\)\. {EARLIER}"
    for read in reads:
        with pytest.raises(DataError, match=message):
            read(run)


def test_of_many_arrays_that_changed_three_are_listed(run):
    other = jax.tree.map(lambda leaf: leaf + 1, state(10))
    with pytest.raises(DataError, match=r"found state/ema/\S+ .* state/params/\S+ .* and 2 more\."):
        SavedStep(run).compare(digest_arrays({"state": other}), "state")


@pytest.mark.parametrize("read", [restore, read_checkpoint, read_datasets, read_loader_state])
def test_a_checkpoint_whose_checksums_are_lost_is_corrupt(run, read):
    shutil.rmtree(run / "checkpoints" / "10" / "digests")
    message = f"expected a whole checkpoint; found FileNotFound.*digests/metadata'. {EARLIER}"
    with pytest.raises(DataError, match=message):
        read(run)
    assert read_kept_config(run) is not None  # that of step 5


def test_a_checkpoint_of_before_there_were_checksums_is_read_with_a_warning(run, caplog):
    checkpoint = run / "checkpoints" / "10"
    shutil.rmtree(checkpoint / "digests")
    items = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    del items["item_handlers"]["digests"]
    (checkpoint / "_CHECKPOINT_METADATA").write_text(json.dumps(items))
    jax.tree.map(np.testing.assert_array_equal, restore(run), state(10))
    assert read_checkpoint(run).vocabulary == b"a vocabulary"
    assert not check_arrays(run)
    assert "checkpoints/10 has no checksums: corruption may go undetected" in caplog.text


def test_settings_of_another_release_are_not_reported_as_corruption(run):
    rewrite_item(run / "checkpoints" / "10", "loader", '{"position": 10, "shuffle": 3}')
    message = r"10, loader: expected a valid LoaderState; found .*shuffle.*Resume with the release"
    with pytest.raises(DataError, match=message):
        read_loader_state(run)


def test_the_last_config_that_can_be_read_is_that_of_the_run(tmp_path, run, constants):
    assert read_kept_config(tmp_path) is None
    later = dataclasses.replace(constants.config, name="later", keep_every=10)
    save(run, dataclasses.replace(constants, config=later), steps=(20,))
    assert read_kept_config(run) == read_checkpoint(run).config == later
    damage(run / "checkpoints" / "20", "no json")
    assert read_kept_config(run) == constants.config


def test_a_step_that_would_be_left_out_is_an_error(run, constants):
    message = r"no checkpoint later than step 7, .*; found the steps \[5, 10\]; it was not saved"
    with pytest.raises(UserError, match=message):
        save(run, constants, steps=(7,))
    save(run, constants, steps=(5, 10))  # they are complete already
    assert steps_of(run) == [5, 10]


def test_a_full_disk_is_reported_with_what_is_kept(run, constants, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    message = (
        r"found 0.00 GB are needed, 0.00 GB free \(that of step 10 is complete\). "
        r"Free space, then continue with --resume\."
    )
    with pytest.raises(UserError, match=message), Checkpoints(run) as checkpoints:
        checkpoints.save(state(15), LoaderState(15, "f", ()), constants)
    monkeypatch.undo()
    assert steps_of(run) == [5, 10]


def test_a_write_that_fails_is_reported_at_the_next_one(tmp_path, constants, as_nobody):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with as_nobody():
        save(directory, constants, steps=(5,))
        (directory / "checkpoints").chmod(0o555)
        message = (
            r"a checkpoint that can be written; found .*\(that of step 5 is complete\). "
            r"Give this user the right to use it, then continue with --resume\."
        )
        with pytest.raises(UserError, match=message), Checkpoints(directory) as checkpoints:
            checkpoints.save(state(10), LoaderState(10, "f", ()), constants)
        (directory / "checkpoints").chmod(0o755)
    assert read_checkpoint(directory).step == 5


def test_bytes_are_those_of_the_arrays():
    assert checkpoint_bytes(state(0)) == 4 + 24 + 8 + 24 + 24


PROCESS = """
import pathlib, sys, jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pipeline.loading.device import make_mesh
from pipeline.loading.loader_state import LoaderState
from train.checkpoints.checkpoint_store import Checkpoints, Constants
from train.flags import load_config
from train.update.train_state import TrainState

run, constants = pathlib.Path(sys.argv[3]), Constants(load_config(sys.argv[4]), {}, b"v")
def place(array, axes, devices):
    sharding = jax.sharding.NamedSharding(make_mesh(devices), jax.P(*axes))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
for step, devices in ((1, 4), (2, 2)):
    array = step + np.arange(96, dtype=np.float32).reshape(8, 12)
    rows, columns = place(array, ["fsdp"], devices), place(array, [None, "fsdp"], devices)
    both, whole = place(array, ["fsdp", "data"], devices), place(array, [], devices)
    number = place(np.asarray(step, np.int32), [], devices)
    state = TrainState(number, {"a": rows, "b": columns}, {"mu": whole}, {"a": both, "b": rows})
    with Checkpoints(run) as checkpoints:
        checkpoints.save(state, LoaderState(step, "f", ()), constants)
    to_like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    with Checkpoints(run) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(to_like, state))
    def same(found, saved):
        assert found.sharding == saved.sharding
        for ours, theirs in zip(found.addressable_shards, saved.addressable_shards, strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)
    jax.tree.map(same, restored, state)
print("restored")
"""


def test_a_state_sharded_across_processes_and_their_devices_is_saved_and_restored(
    tmp_path, tiny_config_path
):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    env = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "XLA_FLAGS": flags}
    both = [
        Command("tests.code", PROCESS, address, index, tmp_path, tiny_config_path, env=env)
        for index in range(2)
    ]
    assert all("restored" in process.finish().stdout for process in both)
    for step in (1, 2):  # also by one process: the checksums do not depend on the shardings
        array = step + np.arange(96, dtype=np.float32).reshape(8, 12)
        found = read_checkpoint(tmp_path, step).params
        np.testing.assert_array_equal([found["a"], found["b"]], [array, array])
