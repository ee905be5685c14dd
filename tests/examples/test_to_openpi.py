"""The batches of examples/openpi_loader against what openpi's code declares."""

import dataclasses
import importlib.util
import io
import json
import pathlib
import re
import textwrap
import types
from typing import Any

import numpy as np
import pytest
import sentencepiece

from pipeline.data.conventions import Gripper
from pipeline.errors import UserError
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.loader_opening import open_loader
from pipeline.loading.transforms.action_transforms import RelativeActions
from tests.small_dataset import CONVENTIONS, LENGTH, write_dataset

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "openpi_loader"
CAMERAS = ("image_front", "image_hand", "")
TEXTS = ("Lift_the cup\n", "open the drawer")
DIMS = ("x", "y", "gripper")
HORIZON, BATCH = 4, 3

# github.com/Physical-Intelligence/openpi, the files with the commits that were read:
#   src/openpi/models/model.py          149a1685  Observation.from_dict: keys, dtypes, [-1, 1]
#   src/openpi/models/pi0_config.py     17a67f59  Pi0Config.inputs_spec: shapes; 48 and 200 tokens
#   src/openpi/training/data_loader.py  099c7724  repack, data, Normalize, model transforms
#   src/openpi/training/config.py       0110ee8f  ModelTransformFactory: resize, tokenize, pad
#   src/openpi/transforms.py            099c7724  Normalize, TokenizePrompt, PadStatesAndActions
#   src/openpi/models/tokenizer.py      85cd0a4b  PaligemmaTokenizer.tokenize
#   src/openpi/policies/libero_policy.py 07f2120f a camera that is missing: zeros, masked
# Path: dtype, shape with the length l of a prompt, smallest and largest value.
IMAGE = ("uint8", (BATCH, 224, 224, 3), 0, 255)
MASK = ("bool", (BATCH,), False, True)
OBSERVATION_AND_ACTIONS = {
    "image/base_0_rgb": IMAGE,
    "image/left_wrist_0_rgb": IMAGE,
    "image/right_wrist_0_rgb": IMAGE,
    "image_mask/base_0_rgb": MASK,
    "image_mask/left_wrist_0_rgb": MASK,
    "image_mask/right_wrist_0_rgb": MASK,
    "state": ("float32", (BATCH, 32), -np.inf, np.inf),
    "tokenized_prompt": ("int32", (BATCH, "l"), 0, 257151),
    "tokenized_prompt_mask": ("bool", (BATCH, "l"), False, True),
    "actions": ("float32", (BATCH, HORIZON, 32), -np.inf, np.inf),
}
PROMPT_LENGTHS = {"normal": 48, "quantile": 200}


def module(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


to_openpi, norm_stats = module("to_openpi"), module("norm_stats")


@pytest.fixture(scope="module")
def vocabulary() -> sentencepiece.SentencePieceProcessor:
    """One id per character, and PaliGemma's ids: 0 pads, 2 begins; a line break is a piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["Task: Lift the cup, open the drawer. State: -0123456789; Action"]),
        model_writer=model,
        model_type="char",
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(1)
    actions = rng.normal(1, 2, (4 * LENGTH, 3)).astype(np.float32)
    actions[:, 2] = np.where(actions[:, 0] > 1, 1, -1)
    shapes = {
        "action": actions,
        "observation/proprio": (3,),
        "observation/image_front": (12, 16, 3),
        "observation/image_hand": (16, 16, 3),
    }
    conventions = dataclasses.replace(CONVENTIONS, grippers=(Gripper(2, open=-1, close=1),))
    dims = {"action": DIMS, "observation/proprio": DIMS}
    folder = tmp_path_factory.mktemp("openpi") / "toy"
    return str(write_dataset(folder, shapes, tasks=TEXTS, dims=dims, conventions=conventions))


def opened(directory: str, kind: Any = "quantile", **changes: Any) -> Loader:
    config = DataConfig(
        (DatasetConfig(directory),),
        vocabulary="",
        observations=("image_front", "image_hand", "proprio"),
        window_size=1,
        action_horizon=HORIZON,
        normalization=kind,
        **changes,
    )
    return open_loader(config, BATCH)


def converted(loader: Loader, vocabulary: Any, steps: list[int]) -> dict[str, Any]:
    return loader.map(to_openpi.ToOpenpi(loader, vocabulary, CAMERAS)).read(0, steps)


def flat(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by path."""
    return {
        "/".join((key, *name)): array
        for key, value in batch.items()
        for name, array in (
            {(n,): a for n, a in value.items()} if isinstance(value, dict) else {(): value}
        ).items()
    }


@pytest.mark.parametrize("kind", PROMPT_LENGTHS)
def test_a_batch_is_what_observation_takes(directory: str, vocabulary: Any, kind: str) -> None:
    loader = opened(directory, kind)
    with loader.map(to_openpi.ToOpenpi(loader, vocabulary, CAMERAS)) as batches:
        batch = flat(next(iter(batches)))
    assert set(batch) == set(OBSERVATION_AND_ACTIONS)
    for key, (dtype, shape, low, high) in OBSERVATION_AND_ACTIONS.items():
        size = tuple(PROMPT_LENGTHS[kind] if side == "l" else side for side in shape)
        assert (str(batch[key].dtype), batch[key].shape) == (dtype, size), key
        assert low <= batch[key].min() <= batch[key].max() <= high, key
    masks = {key: batch[f"image_mask/{key}"].tolist() for key in to_openpi.CAMERAS}
    assert masks == {
        "base_0_rgb": [True] * BATCH,
        "left_wrist_0_rgb": [True] * BATCH,
        "right_wrist_0_rgb": [False] * BATCH,
    }
    assert not batch["image/right_wrist_0_rgb"].any()


@pytest.mark.parametrize("kind", PROMPT_LENGTHS)
def test_values_are_those_of_openpis_normalize(directory: str, vocabulary: Any, kind: str) -> None:
    loader = opened(directory, kind)
    batch = converted(loader, vocabulary, [4, 0])
    episode = loader.datasets[0].episode(0)
    # As LeRobot does for openpi, what lies past the end repeats the last action.
    stored = {
        "actions": episode["action"][[[4, 5, 5, 5], [0, 1, 2, 3]]],
        "state": episode["observation"]["proprio"][[4, 0]],
    }
    stats = json.loads(norm_stats.norm_stats(loader))["norm_stats"]
    for key, values in stored.items():
        mean, std, q01, q99 = (np.array(stats[key][name]) for name in ("mean", "std", "q01", "q99"))
        expected = {
            "normal": (values - mean) / (std + 1e-6),
            "quantile": (values - q01) / (q99 - q01 + 1e-6) * 2 - 1,
        }[kind]
        np.testing.assert_allclose(batch[key][..., :3], expected, rtol=1e-5, atol=2e-6)
        assert not batch[key][..., 3:].any()
    np.testing.assert_array_equal(batch["actions"][..., 2], stored["actions"][..., 2])
    assert stats["actions"]["q01"][2] == stats["actions"]["mean"][2] - 1 == -1


def test_relative_actions_have_their_own_statistics(directory: str, vocabulary: Any) -> None:
    loader = opened(directory, transforms=(RelativeActions(("x", "y")),))
    batch = converted(loader, vocabulary, [0])
    episode = loader.datasets[0].episode(0)
    stats = json.loads(norm_stats.norm_stats(loader))["norm_stats"]["actions"]
    low, high = (np.array(stats[name]) for name in ("q01", "q99"))
    restored = (batch["actions"][0, :, :3] + 1) / 2 * (high - low + 1e-6) + low
    restored[:, :2] += episode["observation"]["proprio"][0, :2]
    np.testing.assert_allclose(restored, episode["action"][:4], atol=1e-5)


def test_prompts_have_the_form_of_their_model(directory: str, vocabulary: Any) -> None:
    step = LENGTH  # the first step of the second episode
    batch = converted(opened(directory, "normal"), vocabulary, [0, step])
    ids, mask = batch["tokenized_prompt"], batch["tokenized_prompt_mask"]
    assert ids[0, :13].tolist() == [2, *vocabulary.Encode("Lift the cup")]
    assert [vocabulary.Decode(row.tolist()) for row in ids] == [
        "Lift the cup\n",
        "open the drawer\n",
    ]
    assert mask.sum(axis=1).tolist() == [14, 17]
    batch = converted(opened(directory, "quantile"), vocabulary, [0, step])
    for text, row, state in zip(
        ("Lift the cup", "open the drawer"), batch["tokenized_prompt"], batch["state"], strict=True
    ):
        bins = np.digitize(state[:3], np.linspace(-1, 1, 257)[:-1]) - 1
        values = " ".join(map(str, bins))
        assert vocabulary.Decode(row.tolist()) == f"Task: {text}, State: {values};\nAction: "


def test_bins_reach_from_below_the_range_to_255(vocabulary: Any, directory: str) -> None:
    tool = to_openpi.ToOpenpi(opened(directory), vocabulary, CAMERAS)
    ids = tool._tokens("", np.array([-1.01, -1, -0.9921875, 0, 0.999, 1, 7], np.float32))
    assert vocabulary.Decode(ids.tolist()) == "Task: , State: -1 0 1 128 255 255 255;\nAction: "


@pytest.mark.parametrize(
    ("shape", "total", "pixel", "rows", "columns"),
    [
        ((480, 640), 14120810, [151, 152, 153], (28, 195), (0, 223)),
        ((100, 37), 6862689, [105, 106, 107], (0, 223), (71, 152)),
    ],
)
def test_images_are_those_of_openpis_resize(shape, total, pixel, rows, columns) -> None:
    # Recorded from image_tools.resize_with_pad of openpi-client 0.1.2, with Pillow 13.0.
    values = np.arange(shape[0] * shape[1] * 3) % 251
    resized = to_openpi.resize_with_pad(values.astype(np.uint8).reshape(*shape, 3))
    assert (int(resized.sum()), resized[112, 100].tolist()) == (total, pixel)
    for axes, ends in (((1, 2), rows), ((0, 2), columns)):
        assert tuple(np.flatnonzero(resized.any(axis=axes))[[0, -1]]) == ends


def test_the_readme_opens_these_batches(
    directory: str,
    vocabulary: Any,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (FOLDER / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (block,) = [textwrap.dedent(one) for one in blocks if "def open_batches" in one]
    names = {"/data/libero": directory, "primary": "front", "image_wrist": "image_hand"}
    for shown, ours in names.items():
        assert shown in block
        block = block.replace(shown, ours)
    (tmp_path / "paligemma_tokenizer.model").write_bytes(vocabulary.serialized_model_proto())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    scope: dict[str, Any] = {}
    exec(block, scope)
    model = types.SimpleNamespace(action_horizon=HORIZON, pi05=True)
    loader, batches = scope["open_batches"](types.SimpleNamespace(model=model, batch_size=BATCH))
    with batches:
        found = flat(next(iter(batches)))
    tool = to_openpi.ToOpenpi(loader, vocabulary, CAMERAS)
    with loader.map(tool) as expected:
        wanted = flat(next(iter(expected)))
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found[key], array)


def test_another_vocabulary_and_a_long_prompt_are_refused(
    directory: str, vocabulary: Any, vocabulary_path: pathlib.Path
) -> None:
    loader = opened(directory)
    t5 = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary_path))
    with pytest.raises(UserError, match=r"vocabulary, with 2 for BOS, .*found -1, and"):
        converted(loader, t5, [0])
    with pytest.raises(UserError, match=r"at most 200 tokens; found 2, and \d+ tokens"):
        to_openpi.ToOpenpi(loader, vocabulary, CAMERAS)._tokens("cup " * 75, np.zeros(3))
