import copy
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import get_args

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from pipeline.data.statistics import FeatureStatistics, compute
from pipeline.errors import DataError, UserError
from pipeline.loading.data_config import Normalization
from pipeline.loading.loader_state import LoaderState
from pipeline.loading.normalize import make_normalizer
from pipeline.loading.transforms.action_transforms import PadActions
from pipeline.loading.transforms.input_transforms import StateNoise
from tests.train.conftest import TINY_CONFIG, random_state
from train.checkpoints.checkpoint_store import Checkpoint, Checkpoints, Constants
from train.checkpoints.export_run import (
    export_octo,
    main,
    original_conventions,
    original_statistics,
)
from train.checkpoints.initial_weights import load_pretrained
from train.flags import load_config
from train.octo.octo_config import (
    LanguageConfig,
    OctoConfig,
    RegressionConfig,
    T5Config,
    VGGTTokenizerConfig,
)
from train.octo.released.octo_checkpoint import OctoCheckpoint
from train.octo.released.weight_loading import Pretrained
from train.train_config import TrainConfig
from train.update.train_state import TrainState


def dataset(name: str, mean: float) -> dict:
    """The description of a dataset with one action of 2 numbers, the last a gripper."""
    action = {"mean": [mean, 0.0], "std": [1.0, 1.0], "count": 10}
    proprio = {"mean": [mean], "std": [1.0], "count": 10}
    return {
        "name": name,
        "statistics": {"action": action, "observation/proprio": proprio},
        "conventions": {"gripper_dim": 1},
    }


def of_dataset(mean: float) -> dict:
    return {
        "action": {"mean": [mean, 0.0], "std": [1.0, 1.0], "mask": [True, False]},
        "proprio": {"mean": [mean], "std": [1.0]},
        "num_transitions": 10,
    }


@pytest.mark.parametrize(
    ("datasets", "statistics"),
    [
        ({"a/1": dataset("libero", 1.0)}, of_dataset(1.0)),
        (
            {"a/1": dataset("libero", 1.0), "b/1": dataset("bridge", 2.0)},
            {"libero": of_dataset(1.0), "bridge": of_dataset(2.0)},
        ),
        (
            {"a/1": dataset("libero", 1.0), "a/2": dataset("libero", 2.0)},
            {"a/1": of_dataset(1.0), "a/2": of_dataset(2.0)},
        ),
    ],
)
def test_statistics_are_laid_out_as_those_of_the_original(datasets: dict, statistics: dict):
    assert original_statistics(datasets) == statistics


def real_dataset(normalization: str, **conventions: float) -> dict:
    """The description of a dataset with random actions of 3 numbers, the last a gripper."""
    rng = np.random.default_rng(0)
    action = np.c_[rng.normal(0.2, 2.0, (500, 2)), rng.choice([-1.0, 1.0], 500)]
    proprio = rng.gamma(2.0, 3.0, (500, 4))
    return {
        "name": "robot",
        "num_episodes": 7,
        "normalization": normalization,
        "conventions": {"gripper_dim": 2, "rotation": "none"} | conventions,
        "statistics": {
            "action": compute(action.astype(np.float32)).to_json(),
            "observation/proprio": compute(proprio.astype(np.float32)).to_json(),
        },
    }


@pytest.mark.parametrize("kind", get_args(Normalization))
def test_the_originals_default_undoes_every_normalization(kind):
    dataset = real_dataset(kind)
    exported = original_statistics({"a": dataset})
    for key, name in (("action", "action"), ("observation/proprio", "proprio")):
        statistics = FeatureStatistics.from_json(dataset["statistics"][key])
        mask = np.array(exported[name].get("mask", [True] * len(statistics.mean)))
        ours = make_normalizer([statistics], [mask], kind)
        values = np.random.default_rng(1).uniform(-1, 1, (32, len(mask))).astype(np.float32)
        mean, std = (np.array(exported[name][moment], np.float32) for moment in ("mean", "std"))
        theirs = np.where(mask, values * std + mean, values)
        np.testing.assert_allclose(theirs, ours.unnormalize(values, np.zeros(32, int)), atol=2e-6)
    assert (exported["num_transitions"], exported["num_trajectories"]) == (500, 7)


@pytest.mark.parametrize(("opens", "closes"), [(-1.0, 1.0), (1.0, -1.0)])
def test_the_gripper_is_exported_as_the_model_gives_it(opens, closes):
    dataset = real_dataset("bounds", gripper_open=opens, gripper_close=closes)
    before = copy.deepcopy(dataset)
    action = original_statistics({"a": dataset})["action"]
    assert dataset == before
    assert [action[name][2] for name in ("min", "p01", "p99", "max")] == [0.0, 0.0, 1.0, 1.0]
    assert action["std"][2] == pytest.approx(0.5, abs=1e-2)
    gripper = original_conventions({"a": dataset})["robot"]["gripper"]
    assert (gripper["dim"], gripper["open"], gripper["close"]) == (2, 1.0, 0.0)
    assert (gripper["command_open"], gripper["command_close"]) == (opens, closes)


def test_several_grippers_are_exported_each_with_its_commands():
    grippers = [{"dim": 0, "open": 5.0, "close": -5.0, "kind": "continuous"}, {"dim": 2}]
    dataset = real_dataset("normal", grippers=grippers, gripper_dim=None)
    action = original_statistics({"a": dataset})["action"]
    assert action["mask"] == [False, True, False]
    assert action["mean"][0] == pytest.approx(0.5 + 0.2 / 10, abs=0.03)
    exported = original_conventions({"a": dataset})["robot"]
    assert "gripper" not in exported
    first, second = exported["grippers"]
    assert (first["dim"], first["command_open"], first["command_close"]) == (0, 5.0, -5.0)
    assert first["kind"] == "continuous: a command between the two is mapped linearly"
    assert (second["dim"], "kind" in second) == (2, False)


GOLDEN = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "ckpt_tiny"


@pytest.fixture(scope="module")
def golden() -> Pretrained:
    """A genuine checkpoint of the original."""
    return OctoCheckpoint(str(GOLDEN), 100).load()


def checkpoint(model: OctoConfig, params: dict) -> Checkpoint:
    """The checkpoint of a run after 100 training steps."""
    config = load_config(str(TINY_CONFIG))
    data = dataclasses.replace(
        config.data,
        observations=model.observation_keys,
        window_size=2,
        conditioning="language_conditioned" if model.language else "image_conditioned",
    )
    config = dataclasses.replace(config, data=data, model=model)
    datasets = {"a/1": dataset("libero", 1.0)}
    return Checkpoint(
        step=100, config=config, params=params, datasets=datasets, vocabulary=b"vocabulary"
    )


@pytest.fixture
def exported(golden: Pretrained, tmp_path: pathlib.Path) -> pathlib.Path:
    export_octo(checkpoint(golden.config, golden.params), tmp_path / "out", "t5_tiny")
    return tmp_path / "out"


def flat(tree: dict) -> dict:
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def test_genuine_checkpoint_comes_back_bitwise_identically(
    golden: Pretrained, exported: pathlib.Path
) -> None:
    again = OctoCheckpoint(str(exported), 100).load()
    assert again.config == golden.config
    ours, theirs = flat(again.params), flat(golden.params)
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        assert (ours[path].dtype, ours[path].tobytes()) == (array.dtype, array.tobytes()), path


def test_config_is_that_of_the_original(exported: pathlib.Path) -> None:
    genuine = json.loads((GOLDEN / "config.json").read_text())
    ours = json.loads((exported / "config.json").read_text())
    assert ours["text_processor"] == genuine["text_processor"]
    assert ours["window_size"] == genuine["window_size"]
    ours, genuine = flat(ours["model"]), flat(genuine["model"])
    assert {key: ours.get(key) for key in genuine} == genuine
    # The settings beyond it are the defaults of the original's code.
    defaults = {"max_action": 5.0, "diffusion_steps": 20}
    beyond = {key.rpartition("/")[2]: value for key, value in ours.items() if key not in genuine}
    assert beyond == defaults


def test_example_batch_has_the_leaves_of_the_original(exported: pathlib.Path) -> None:
    genuine, ours = (
        flat(serialization.msgpack_restore((path / "example_batch.msgpack").read_bytes()))
        for path in (GOLDEN, exported)
    )
    for key, array in ours.items():
        assert (array.dtype, array.shape) == (genuine[key].dtype, genuine[key].shape), key
    # Proprioception and the goal's step are there too, but the model reads neither.
    unread = {key for key in genuine.keys() - ours.keys() if "proprio" not in key}
    assert unread == {
        "observation/task_completed",
        "task/timestep",
        "task/pad_mask_dict/timestep",
    }


def test_all_that_is_in_the_way_of_the_demo_is_reported_at_once(
    golden: Pretrained, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    small = T5Config(vocab_size=200, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    changed = dataclasses.replace(
        golden.config,
        vggt=VGGTTokenizerConfig(21, 64),
        head=RegressionConfig("l1"),  # which the original has
        language=LanguageConfig(small),
    )
    with pytest.raises(UserError, match=r"expected a model .*; found 3 obstacles") as caught:
        export_octo(checkpoint(changed, golden.params), tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.partition(": expected")[0] for line in lines] == [
        "  - model",
        "  - model.language.t5",
        f"  - {tmp_path}",
    ]
    assert "that the original Octo has; found VGGTTokenizerConfig 'vggt'. Load" in lines[0]
    assert "--language_encoder NAME" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_transforms_of_actions_are_in_the_way(golden: Pretrained, tmp_path: pathlib.Path) -> None:
    kept = checkpoint(golden.config, golden.params)
    transforms = (StateNoise("proprio", (("x_m", 0.1),)), PadActions(9))
    data = dataclasses.replace(kept.config.data, transforms=transforms)
    config = dataclasses.replace(kept.config, data=data)
    message = "data.transforms: expected parts that the original Octo has; found PadActions"
    with pytest.raises(UserError, match=message):
        export_octo(dataclasses.replace(kept, config=config), tmp_path / "out", "t5_tiny")
    assert not (tmp_path / "out").exists()


def test_a_model_that_was_aligned_is_written_as_the_octo_that_it_acts_as(
    golden: Pretrained, tmp_path: pathlib.Path
) -> None:
    vggt = VGGTTokenizerConfig(21, 8, fusion="align")
    config = dataclasses.replace(golden.config, vggt=vggt)
    aligned = {"alignments_vggt": {"Dense_0": {"bias": np.zeros(64, np.float32)}}}
    transformer = golden.params["octo_transformer"] | aligned
    params = golden.params | {"octo_transformer": transformer}
    export_octo(checkpoint(config, params), tmp_path / "out", "t5_tiny")
    again = OctoCheckpoint(str(tmp_path / "out"), 100).load()
    assert again.config == golden.config
    assert flat(again.params).keys() == flat(golden.params).keys()
    example = serialization.msgpack_restore((tmp_path / "out/example_batch.msgpack").read_bytes())
    assert "vggt_tokens" not in example["observation"]
    assert "vggt_tokens" not in example["observation"]["pad_mask_dict"]


def test_directory_in_use_is_left_alone(exported: pathlib.Path, golden: Pretrained) -> None:
    before = np.fromfile(exported / "config.json", np.uint8)
    with pytest.raises(UserError, match="expected a new or empty directory; found files"):
        export_octo(checkpoint(golden.config, golden.params), exported, "t5_tiny")
    np.testing.assert_array_equal(np.fromfile(exported / "config.json", np.uint8), before)


def test_destination_that_is_a_file_is_reported(golden: Pretrained, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="file: expected a new or empty directory; found a file"):
        export_octo(checkpoint(golden.config, golden.params), tmp_path / "file", "t5_tiny")
    with pytest.raises(UserError, match=r"expected a destination that can be written; found Not a"):
        export_octo(checkpoint(golden.config, golden.params), tmp_path / "file" / "out", "t5_tiny")
    assert (tmp_path / "file").read_text() == "kept"


def test_destination_that_cannot_be_written_is_reported(
    golden: Pretrained, tmp_path: pathlib.Path, as_nobody: Callable
) -> None:
    tmp_path.chmod(0o555)
    message = r"out\S*: expected a destination that can be written; found Permission denied"
    with as_nobody(), pytest.raises(UserError, match=message):
        export_octo(checkpoint(golden.config, golden.params), tmp_path / "out", "t5_tiny")


def test_encoder_of_other_sizes_than_t5_base_must_be_named(
    golden: Pretrained, tmp_path: pathlib.Path
) -> None:
    message = r"t5: expected the sizes of t5-base, .*vocab_size=200.*--language_encoder NAME"
    with pytest.raises(UserError, match=message):
        export_octo(checkpoint(golden.config, golden.params), tmp_path / "out")
    with pytest.raises(UserError, match="language_encoder bert: expected a name with 't5' in it"):
        export_octo(checkpoint(golden.config, golden.params), tmp_path / "out", "bert")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("language", [None, LanguageConfig(T5Config())])
def test_without_another_encoder_none_need_be_named(
    golden: Pretrained, tmp_path: pathlib.Path, language: LanguageConfig | None
) -> None:
    config = dataclasses.replace(golden.config, language=language)
    export_octo(checkpoint(config, golden.params), tmp_path / "out")
    model = json.loads((tmp_path / "out" / "config.json").read_text())["model"]
    names = [spec["kwargs"]["encoder"] for spec in model["task_tokenizers"].values()]
    assert names == ["t5-base"] * (language is not None)


@pytest.fixture
def config(tiny_config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, vggt=None))


@pytest.fixture
def state(config: TrainConfig) -> TrainState:
    return random_state(config)


@pytest.fixture
def run(config: TrainConfig, state: TrainState) -> pathlib.Path:
    """The directory of a run that stopped at step 0, with two datasets of one name."""
    return save(config, state)


def save(config: TrainConfig, state: TrainState) -> pathlib.Path:
    directory = pathlib.Path(config.save_dir)
    datasets = {"a/1": dataset("libero", 1.0), "a/2": dataset("libero", 2.0)}
    constants = Constants(config, datasets, b"vocabulary")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, LoaderState(0, "0" * 16, ()), constants)
    return directory


def export(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    main()


def test_the_directory_of_a_checkpoint_is_enough(run, tmp_path, monkeypatch, capsys):
    export(monkeypatch, run, tmp_path / "out", "--language_encoder", "t5_tiny")
    assert f"octo checkpoint: {tmp_path / 'out'}, step 0" in capsys.readouterr().out
    statistics = json.loads((tmp_path / "out" / "dataset_statistics.json").read_text())
    assert statistics.keys() == {"a/1", "a/2"}
    conventions = json.loads((tmp_path / "out" / "conventions.json").read_text())
    assert conventions["a/1"]["gripper"]["open"] == 1.0
    ours, theirs = load_pretrained(str(run)), load_pretrained(str(tmp_path / "out"))
    assert ours.config == theirs.config


def test_a_destination_that_is_a_file_is_reported_in_one_line(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        export(monkeypatch, run, tmp_path / "file", "--language_encoder", "t5_tiny")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "expected a new or empty directory; found a file" in error


def test_a_directory_that_is_no_run_is_reported(tmp_path, monkeypatch, capsys):
    for directory, found in ((tmp_path, "none in it"), (tmp_path / "x", "no such directory")):
        with pytest.raises(SystemExit) as caught:
            export(monkeypatch, directory, tmp_path / "out")
        assert caught.value.code == 2
        message = f"expected the directory of a run, with checkpoints; found {found}"
        assert message in capsys.readouterr().err


def test_a_folder_inside_a_run_is_reported_with_the_run_directory(run):
    for inside, remedy in (
        ("checkpoints", f"Give {run}."),
        ("checkpoints/0", f"Give {run}, with pretrained_step 0."),
    ):
        with pytest.raises(UserError, match="found a folder inside one") as caught:
            load_pretrained(str(run / inside))
        assert caught.value.remedy == remedy


def test_a_run_that_diverged_gives_no_weights(config, state):
    head = jax.tree.map(lambda leaf: leaf * np.float32("nan"), state.params["heads_action"])
    run = save(config, state.replace(params=state.params | {"heads_action": head}))
    message = r"run, step 0: expected \d+ tensors of finite floats; found \d+ others, .* NaN"
    with pytest.raises(DataError, match=message):
        load_pretrained(str(run))
