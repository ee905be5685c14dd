import dataclasses
import gc
import json
import pathlib
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from pipeline.loading.loader_state import LoaderState
from train.checkpoints.checkpoint_store import (
    Checkpoints,
    Constants,
    check_arrays,
    checkpoint_bytes,
    has_checkpoint,
    read_checkpoint,
    read_datasets,
    read_kept_config,
    read_loader_state,
)
from train.update.train_state import TrainState

STEPS = (5, 10, 15, 20, 25)
LEAVES_READS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""If one of the reads that Orbax started together fails, it leaves the others unfinished."""


@pytest.fixture(autouse=True)
def reads_are_left_to_no_other_test():
    yield
    gc.collect()


def state(step: int, *, ema: bool = True) -> TrainState:
    params = {
        "head": {"kernel": jnp.full((3, 2), float(step))},
        "hf_model": {"kernel": jnp.ones((2,))},
    }
    average = {"head/kernel": jnp.full((3, 2), -float(step))} if ema else {}
    return TrainState(jnp.asarray(step, jnp.int32), params, {"mu": jnp.zeros((3, 2))}, average)


@pytest.fixture
def constants(tiny_config):
    return Constants(tiny_config, {"data/x": {"name": "x"}}, b"a vocabulary")


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


def test_what_a_policy_needs_comes_back_from_a_step_alone(tmp_path, constants):
    save(tmp_path / "run", constants)
    (tmp_path / "moved").mkdir()
    kept = tmp_path / "moved" / "checkpoints" / "20"
    shutil.copytree(tmp_path / "run" / "checkpoints" / "20", kept)
    found = read_checkpoint(tmp_path / "moved")
    assert found.step == 20
    assert found.config == constants.config
    assert found.datasets == read_datasets(tmp_path / "moved", 20) == {"data/x": {"name": "x"}}
    assert found.vocabulary == b"a vocabulary"
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), -20.0))
    np.testing.assert_array_equal(found.params["hf_model"]["kernel"], np.ones(2))
    assert isinstance(found.params["head"]["kernel"], np.ndarray)


def test_without_an_average_the_parameters_themselves_come_back(tmp_path, constants):
    save(tmp_path, constants, ema=False)
    found = read_checkpoint(tmp_path, 5)
    np.testing.assert_array_equal(found.params["head"]["kernel"], np.full((3, 2), 5.0))


def test_state_and_loader_continue_where_they_were(tmp_path, constants):
    save(tmp_path, constants)
    assert read_loader_state(tmp_path) == LoaderState(25, "f", ())
    restored = restore(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored, state(25))


def test_a_step_that_is_not_there_is_named_with_those_that_are(tmp_path, constants):
    with pytest.raises(UserError, match="expected a complete checkpoint; found none"):
        read_checkpoint(tmp_path)
    assert not has_checkpoint(tmp_path)
    save(tmp_path, constants, steps=(5,))
    assert has_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"a checkpoint of step 7; found the steps \[5\]"):
        read_checkpoint(tmp_path, 7)


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
def test_a_corrupt_checkpoint_is_reported_with_its_remedy(tmp_path, constants, kind):
    save(tmp_path, constants, steps=(5, 10))
    damage(tmp_path / "checkpoints" / "10", kind)
    message = rf"checkpoints/10: expected a whole checkpoint; found .*\. {EARLIER}"
    with pytest.raises(DataError, match=message):
        read_checkpoint(tmp_path)
    read = read_loader_state if kind == "no json" else restore
    with pytest.raises(DataError, match=message):
        read(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    assert read_checkpoint(tmp_path).step == 5


def test_where_no_earlier_checkpoint_is_there_the_run_begins_anew(tmp_path, constants):
    save(tmp_path, constants, steps=(5, 10))
    damage(tmp_path / "checkpoints" / "5", "no json")
    with pytest.raises(
        DataError, match=r"no earlier step is there: start the run from scratch with --ov"
    ):
        read_checkpoint(tmp_path, 5)


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


@pytest.mark.parametrize("read", [restore, check_arrays, read_checkpoint])
def test_an_array_with_other_bytes_is_named_with_the_step_before(tmp_path, constants, read):
    save(tmp_path, constants, steps=(5, 10))
    change_digest(tmp_path, "arrays", "state/params/head/kernel", "float32[3,2] 0")
    message = (
        r"10: expected its arrays as saved; found state/params/head/kernel "
        rf"\(float32\[3,2\] 0 then, float32\[3,2\] [0-9a-f]{{32}} now\)\. {EARLIER}"
    )
    with pytest.raises(DataError, match=message):
        read(tmp_path)


def change_digest(directory, kind, name, digest):
    path = directory / "checkpoints" / "10" / "digests" / "metadata"
    digests = json.loads(path.read_text())
    assert name in digests[kind]
    digests[kind][name] = digest
    path.write_text(json.dumps(digests))


@pytest.mark.parametrize(
    ("name", "read"),
    [("loader", read_loader_state), ("config", read_checkpoint), ("datasets", read_datasets)],
)
def test_settings_that_changed_are_named(tmp_path, constants, name, read):
    save(tmp_path, constants, steps=(5, 10))
    change_digest(tmp_path, "values", name, "0")
    with pytest.raises(DataError, match=rf"10: expected {name} as saved, 0; found [0-9a-f]{{32}}"):
        read(tmp_path)


def test_a_checkpoint_of_before_there_were_digests_is_read_with_a_warning(
    tmp_path, constants, caplog
):
    save(tmp_path, constants, steps=(5,))
    shutil.rmtree(tmp_path / "checkpoints" / "5" / "digests")
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path), state(5))
    assert read_checkpoint(tmp_path).config == constants.config
    assert "checkpoints/5 has no checksums: corruption may go undetected" in caplog.text


def test_settings_of_another_release_are_not_reported_as_corruption(tmp_path, constants):
    save(tmp_path, constants, steps=(5, 10))
    shutil.rmtree(tmp_path / "checkpoints" / "10" / "digests")
    kept = tmp_path / "checkpoints" / "10" / "loader" / "metadata"
    kept.write_text('{"position": 10, "shuffle": 3}')
    message = r"10, loader: expected a valid LoaderState; found .*shuffle.*Resume with the release"
    with pytest.raises(DataError, match=message):
        read_loader_state(tmp_path)
    kept.write_text(kept.read_text()[:9])
    with pytest.raises(DataError, match=f"expected a whole checkpoint; found JSOND.*{EARLIER}"):
        read_loader_state(tmp_path)


def test_the_last_config_that_can_be_read_is_that_of_the_run(tmp_path, constants):
    assert read_kept_config(tmp_path) is None
    save(tmp_path, constants, steps=(5,))
    later = dataclasses.replace(constants.config, name="later")
    save(tmp_path, dataclasses.replace(constants, config=later), steps=(10,))
    assert read_kept_config(tmp_path) == later
    damage(tmp_path / "checkpoints" / "10", "no json")
    assert read_kept_config(tmp_path) == constants.config


def test_a_step_that_would_be_left_out_is_an_error(tmp_path, constants):
    save(tmp_path, constants, steps=(5, 10))
    message = r"no checkpoint later than step 7, .*; found the steps \[5, 10\]; it was not saved"
    with pytest.raises(UserError, match=message):
        save(tmp_path, constants, steps=(7,))
    save(tmp_path, constants, steps=(5, 10))  # they are complete already
    assert steps_of(tmp_path) == [5, 10]


def test_a_full_disk_is_reported_with_what_is_kept(tmp_path, constants, monkeypatch):
    save(tmp_path, constants, steps=(5,))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 0, 10))
    message = (
        r"found 0.00 GB are needed, 0.00 GB free \(that of step 5 is complete\). "
        r"Free space, then continue with --resume\."
    )
    with pytest.raises(UserError, match=message), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state(10), LoaderState(10, "f", ()), constants)
    monkeypatch.undo()
    assert steps_of(tmp_path) == [5]


def test_a_write_that_fails_is_reported_at_the_next_one(tmp_path, constants, as_nobody):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o777)
    with as_nobody():
        save(directory, constants, steps=(5,))
        (directory / "checkpoints").chmod(0o555)
        message = (
            r"a checkpoint that can be written; found .*\(that of step 5 is complete\). "
            r"Give this user the right to write it, then continue with --resume\."
        )
        with pytest.raises(UserError, match=message), Checkpoints(directory) as checkpoints:
            checkpoints.save(state(10), LoaderState(10, "f", ()), constants)
        (directory / "checkpoints").chmod(0o755)
    assert read_checkpoint(directory).step == 5


def test_bytes_are_those_of_the_arrays():
    assert checkpoint_bytes(state(0)) == 4 + 24 + 8 + 24 + 24


def test_fields_of_a_config_survive(tmp_path, constants):
    config = dataclasses.replace(constants.config, name="a name", keep_every=10)
    save(tmp_path, dataclasses.replace(constants, config=config), steps=(5,))
    assert read_checkpoint(tmp_path).config == config
