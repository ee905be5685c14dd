import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from pipeline.errors import DataError, UserError
from train.octo.released.octo_checkpoint import OctoCheckpoint, check_tensors


@pytest.fixture
def checkpoint(tmp_path: Path, golden_dir: Path) -> Path:
    """A copy of the genuine checkpoint that a test may spoil."""
    return Path(shutil.copytree(golden_dir / "ckpt_tiny", tmp_path / "ckpt"))


def test_a_genuine_checkpoint_is_read_whole(golden_dir: Path) -> None:
    params = OctoCheckpoint(str(golden_dir / "ckpt_tiny"), 100).load().params
    assert set(params) == {"octo_transformer", "heads_action"}
    kernel = params["octo_transformer"]["obs_primary_projection"]["kernel"]
    assert isinstance(kernel, np.ndarray)
    assert (kernel.shape, kernel.dtype) == ((64, 64), np.float32)


def _no_config(path: Path) -> None:
    (path / "config.json").unlink()


def _no_directory(path: Path) -> None:
    shutil.rmtree(path)


def _no_step(path: Path) -> None:
    (path / "100").rename(path / "300")


def _no_file(path: Path) -> None:
    (path / "100" / "default" / "checkpoint").unlink()


def _foreign_config(path: Path) -> None:
    (path / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')


def _broken_config(path: Path) -> None:
    (path / "config.json").write_text('{"model": ')


def _foreign_params(path: Path) -> None:
    params = serialization.msgpack_serialize({"encoder": np.ones(3)})
    (path / "100" / "default" / "checkpoint").write_bytes(params)


def _newer_orbax(path: Path) -> None:
    folder = path / "100" / "default"
    (folder / "checkpoint").unlink()
    (folder / "manifest.ocdbt").touch()


def _step_file(path: Path) -> None:
    (path / "200").touch()
    shutil.rmtree(path / "100")


def _garbage(path: Path) -> None:
    (path / "100" / "default" / "checkpoint").write_bytes(b"not msgpack at all")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_config, "config.json: expected Octo's config.json, .* found no such file"),
        (_no_directory, "config.json: .* found no such file"),
        (_no_step, r"expected step 100; found the steps \[300\]"),
        (_no_file, "default/checkpoint: .* found .*No such file"),
        (_foreign_config, "with the key 'model'; found another JSON value"),
        (_broken_config, "config.json: .* found JSONDecodeError"),
        (_foreign_params, "keys .'heads_action', 'octo_transformer'.; found encoder"),
        (_garbage, "default/checkpoint: expected"),
        (_newer_orbax, "100/default: .*another layout, .* newer releases .*manifest.ocdbt"),
        (_step_file, "expected step 100; found no step at all"),
    ],
)
def test_a_checkpoint_that_is_none_is_an_error(
    checkpoint: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(checkpoint)
    with pytest.raises(UserError, match=message):
        OctoCheckpoint(str(checkpoint), 100).load()


@pytest.mark.parametrize("keep", [0, 1, 100, 40_000, 1_600_000, -1])
def test_a_truncated_checkpoint_is_an_error(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "100" / "default" / "checkpoint"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="bytes that end early or are corrupt"):
        OctoCheckpoint(str(checkpoint), 100).load()


def test_the_folder_of_a_step_may_have_leading_zeros(checkpoint: Path) -> None:
    (checkpoint / "100").rename(checkpoint / "0100")
    assert OctoCheckpoint(str(checkpoint), 100).load().params
    with pytest.raises(UserError, match=r"expected step 7; found the steps \[100\]"):
        OctoCheckpoint(str(checkpoint), 7).load()


@pytest.mark.parametrize("folder", ["100", "100/default"])
def test_the_folder_of_a_step_is_an_error_that_names_its_parent(
    checkpoint: Path, folder: str
) -> None:
    with pytest.raises(UserError) as caught:
        OctoCheckpoint(str(checkpoint / folder), None).load()
    assert caught.value.remedy == f"Give {checkpoint}, with pretrained_step 100"


def test_a_folder_of_the_hubs_cache_is_reported_with_its_name_on_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "models--rail-berkeley--octo-small-1.5"
    (folder / "snapshots").mkdir(parents=True)
    for directory in (folder, folder / "snapshots"):
        with pytest.raises(UserError, match=r"write hf://rail-berkeley/octo-small-1.5"):
            OctoCheckpoint(str(directory), 300000).load()


def test_files_that_may_not_be_read_are_reported(checkpoint: Path, as_nobody: Callable) -> None:
    config = checkpoint / "config.json"
    params = checkpoint / "100" / "default" / "checkpoint"
    for path in (params, config):
        path.chmod(0)
        with as_nobody(), pytest.raises(DataError, match=f"{path}: .* found .*Permission denied"):
            OctoCheckpoint(str(checkpoint), 100).load()


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (7, "a/b: not an array but a int"),
        ("PLACEHOLDER://a", "a/b: not an array but a str"),
        ([1.0], "a/b: not an array but a list"),
        (None, "a/b: not an array but a NoneType"),
        (np.ones(2, np.complex64), "a/b: of complex64"),
        (np.ones(2, np.int32), "a/b: of int32"),
        (np.array([1, np.nan], np.float32), "a/b: has values that are NaN or infinite"),
        (np.array([1, -np.inf], np.float16), "a/b: has values that are NaN or infinite"),
        (np.array([1, np.nan], jnp.bfloat16), "a/b: has values that are NaN or infinite"),
    ],
)
def test_a_leaf_that_is_no_tensor_of_finite_floats_is_reported(leaf: Any, found: str) -> None:
    good = np.ones(3, np.float32)
    message = f"here: expected 2 tensors of finite floats; found 1 others, such as {found}"
    with pytest.raises(DataError, match=message):
        check_tensors({"a": {"b": leaf}, "c": good}, "here")
    check_tensors({"c": good, "d": good.astype(jnp.bfloat16)}, "here")


def test_of_many_such_leaves_three_are_named() -> None:
    with pytest.raises(DataError, match=r"found 5 others, such as 0: .*; 1: .*; 2: [^;]*$"):
        check_tensors({str(i): 0 for i in range(5)}, "here")


def test_a_checkpoint_whose_leaves_are_no_arrays_is_reported(checkpoint: Path) -> None:
    params = serialization.msgpack_serialize({"octo_transformer": {"a": 5}, "heads_action": {}})
    (checkpoint / "100" / "default" / "checkpoint").write_bytes(params)
    with pytest.raises(DataError, match=r"default/checkpoint: .* octo_transformer/a: not an array"):
        OctoCheckpoint(str(checkpoint), 100).load()
