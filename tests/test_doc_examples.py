import doctest
import importlib
import pathlib
import re
import shutil
import sys
from typing import Any, cast, get_args

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from converters.mapping.mapping_registry import read_mapping
from converters.operations.operations import AnyOperation
from converters.vggt.token_job import TokenJob, TokenSettings, add_tokens
from octograin import load_parts, octo_small
from pipeline.data.dataset import open_dataset
from pipeline.data.images import decode_image
from pipeline.loading.batch import LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.transforms.gripper_rules import GripperRule
from pipeline.loading.transforms.transform_chain import TransformChain
from tests.small_dataset import write_dataset
from train.octo.protocols import HeadConfig, TokenizerConfig, WeightSource
from train.train_config import TrainConfig

ROOT = pathlib.Path(__file__).parents[1]


def test_tokens_made_elsewhere_are_those_of_the_dataset(
    short_dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(short_dataset, tmp_path / "data" / "libero_mini")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("data/libero_mini")
    settings = TokenSettings("vggt_tiny", image_size=(56, 56))
    add_tokens(TokenJob.load(dataset, settings, "random:tiny", 16), overwrite=False)
    dataset = open_dataset("data/libero_mini")
    image = np.empty((128, 128, 3), np.uint8)
    encoded = dataset.columns["steps"].read(7)["observation/image_primary"]
    decode_image(cast(bytes, encoded), image, "step 7")
    page = (ROOT / "docs" / "tokens.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    made_up = re.compile(r"^images = .*$", re.MULTILINE)
    names: dict[str, Any] = {"shown": np.stack([image, image])}
    exec(made_up.sub("images = shown", example), names)
    stored = dataset.columns["vggt_tiny"].read(7)["observation/vggt_tiny"]
    assert names["tokens"].shape == (2, 21, 64)
    np.testing.assert_allclose(names["tokens"][1], stored, atol=2e-3)


@pytest.fixture(scope="module")
def page_parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parts that the page about extending defines, in one module."""
    page = (ROOT / "docs" / "extending.md").read_text()
    parts, _, *others = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("page") / "page_parts.py"
    path.write_text("\n\n".join([parts, *others]))
    load_parts(str(path))
    return importlib.import_module("page_parts")


def test_config_of_the_page_on_extending_is_a_run(
    page_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    _, example, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.setitem(sys.modules, "my_parts", page_parts)
    names: dict[str, Any] = {}
    exec(example, names)
    config = names["VARIANTS"]["default"]
    assert isinstance(config, TrainConfig)
    assert [type(part).__name__ for part in config.data.transforms] == ["Distance", "RootActions"]


def test_tokenizer_of_the_page_makes_one_masked_token_per_joint(page_parts: Any) -> None:
    tokenizer = page_parts.JointTokenizerConfig(3)
    assert isinstance(tokenizer, TokenizerConfig)
    assert tokenizer.inputs["joints"].shape == (3,)
    joints = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    real = np.array([[False, True]])
    observation = {
        "joints": joints,
        "timestep_pad_mask": real,
        "pad_mask_dict": {"joints": np.ones_like(real)},
    }
    group = tokenizer.make_tokenizer("float32").apply({}, observation, {})
    np.testing.assert_array_equal(group.tokens, joints[..., None])
    np.testing.assert_array_equal(group.mask, [[[False] * 3, [True] * 3]])


def test_head_of_the_page_predicts_a_chunk_and_leaves_out_masked_actions(page_parts: Any) -> None:
    head = page_parts.LinearHeadConfig(action_horizon=2, action_dim=1)
    assert isinstance(head, HeadConfig)
    # One dimension of readout, which the first action copies and the second doubles.
    layer = {"kernel": np.array([[1.0, 2.0]], np.float32), "bias": np.zeros(2, np.float32)}
    readout = np.array([[[[5.0]], [[3.0]]]], np.float32)
    module, params = head.make_head(), {"params": {"layer": layer}}
    chunk = module.apply(params, readout, None, method="sample")
    np.testing.assert_array_equal(chunk, [[[3.0], [6.0]]])
    action = np.array([[[[5.0], [10.0]], [[2.0], [99.0]]]], np.float32)
    mask = jnp.asarray(action < 50)
    loss = module.apply(params, readout, action, mask, None, method="loss")
    np.testing.assert_allclose(loss, 1 / 3, rtol=1e-6)


def test_source_of_weights_of_the_page_reads_what_was_saved(
    page_parts: Any, tmp_path: pathlib.Path
) -> None:
    np.savez(tmp_path / "weights.npz", **{"heads_action/layer/bias": np.array([1.0, 2.0])})
    source = page_parts.NumpyWeights(str(tmp_path / "weights.npz"))
    assert isinstance(source, WeightSource)
    loaded = source.load()
    assert loaded.config == octo_small()
    np.testing.assert_array_equal(loaded.params["heads_action"]["layer"]["bias"], [1.0, 2.0])


def test_parts_of_the_page_on_extending_are_parts(page_parts: Any, tmp_path: pathlib.Path) -> None:
    shapes = {"action": (2,), "observation/proprio": (2,)}
    names = {"action": ("dx", "grip"), "observation/proprio": ("x_m", "y_m")}
    path = write_dataset(tmp_path / "data", shapes, dims=names)
    transforms = (page_parts.Distance(("x_m",), ("y_m",)), page_parts.RootActions(("dx",)))
    config = DataConfig(
        (DatasetConfig(str(path)),),
        vocabulary="",
        observations=("proprio",),
        transforms=transforms,
        normalized=(),
    )
    batch = Loader(config, 4, [open_dataset(str(path))], None).read(0, range(4))
    state = batch["observation"]["proprio"]
    np.testing.assert_allclose(
        batch["observation"]["distance"][..., 0], np.abs(state[..., 0] - state[..., 1]), rtol=1e-6
    )
    spec = {"action": LeafSpec("float32", (1, 1, 1, 2), names["action"])}
    chain = TransformChain.bind(transforms[1:], spec, seed=None)
    actions = {"action": np.array([[[[-4.0, 3.0]]]], np.float32)}
    np.testing.assert_array_equal(chain.trace(actions)[-1]["action"][0, 0], [[-2.0, 3.0]])
    back = chain.invert(np.array([[[-2.0, 3.0]]], np.float32), [actions, actions])
    np.testing.assert_array_equal(back, [[[-4.0, 3.0]]])
    assert isinstance(page_parts.OpenSlowly("grip"), GripperRule)
    assert page_parts.OpenSlowly("grip").decide(1.0, 0.25) == 0.35


@pytest.mark.parametrize(("page", "examples"), [("batches.md", 20), ("reference/model.md", 10)])
def test_examples_of_a_page_give_what_it_says(
    page: str,
    examples: int,
    mini_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "libero_mini").symlink_to(mini_dataset)
    for folder in ("tests", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert attempted > examples
    assert failed == 0


def mapping_examples() -> list[str]:
    """The examples of the page about mappings: all settings, then those that stand in others."""
    page = (ROOT / "docs" / "reference" / "mapping.md").read_text()
    return re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_mapping_of_the_reference_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "my_robot.toml").write_text(mapping_examples()[0])
    mapping = read_mapping(epath.Path(tmp_path / "my_robot.toml"))
    assert mapping.features[0].key == "action"
    assert mapping.conventions.no_op_threshold == 0.0001


def test_computing_mappings_of_the_reference_are_read(tmp_path: pathlib.Path) -> None:
    head = mapping_examples()[0].split("[[features]]")[0].split("[[conventions")[0]
    head = re.sub(r"^column_licences.*$", "", head, flags=re.MULTILINE)
    computing = [example for example in mapping_examples()[1:] if "[steps]" in example]
    assert len(computing) == 2
    for example in computing:
        action = "" if "[[features]]" in example else '[[features]]\nkey = "action"\nsource = "a"\n'
        (tmp_path / "my_robot.toml").write_text(head + action + example)
        assert read_mapping(epath.Path(tmp_path / "my_robot.toml")).is_computed


def test_every_operation_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "mapping.md").read_text()
    kinds = get_args(get_args(AnyOperation)[0])
    names = {kind.__dataclass_fields__["op"].default for kind in kinds}
    assert len(names) > 20
    firsts = re.findall(r"^\| (`\w.*?) \|", page, re.MULTILINE)
    assert names <= set(re.findall(r"`(\w+)`", " ".join(firsts)))


def test_config_of_the_finetuning_page_is_a_run() -> None:
    page = (ROOT / "docs" / "finetuning.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    config = names["VARIANTS"]["default"]
    assert isinstance(config, TrainConfig)
    assert config.data.observations == ("image_primary",)
    assert [camera.name for camera in config.model.images] == ["primary"]
