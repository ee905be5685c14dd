"""Datasets of other shapes than LIBERO's: cameras of several sizes, scalars, pixels, any names."""

import json
import pathlib
import sys
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from converters.vggt.__main__ import _cameras
from pipeline.benchmark.__main__ import main as benchmark
from pipeline.data.dataset import open_dataset
from pipeline.data.images import resize_image
from pipeline.errors import SchemaError
from pipeline.inspection.__main__ import to_json
from pipeline.inspection.dataset_figure import make_figure
from pipeline.inspection.dataset_summary import read_images, summarize
from pipeline.inspection.summary_tables import to_text
from pipeline.loading.text import describe_texts, tokenize
from tests.pipeline.inspection.test_summary_tables import plain
from tests.small_dataset import LENGTH, write_dataset
from train.update.image_resizing import resize_images

CAMERA = "observation/image_primary"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "size"), [((48, 64), (32, 32)), ((24, 32), (64, 48)), ((32, 32), (32, 32))]
)
def test_host_and_device_resize_alike(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image, out = noise(*shape, 3), np.empty((*size, 3), np.uint8)
    resize_image(image, out)
    difference = np.abs(np.asarray(resize_images(jnp.asarray(image), *size)) - out.astype(np.int16))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 1e-3


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """Datasets whose camera is 24x32 and 16x16."""
    root = tmp_path_factory.mktemp("sizes")
    shapes = {"large": (24, 32, 3), "small": (16, 16, 3)}
    return [write_dataset(root / n, {"action": (2,), CAMERA: s}) for n, s in shapes.items()]


def test_cameras_of_several_sizes_are_resized_to_the_models(
    make_loader: Callable, two_sizes: list[pathlib.Path]
) -> None:
    settings = {"observations": ("image_primary",), "conditioning": "image_conditioned"}
    loader = make_loader(*two_sizes, image_sizes={"image_primary": 20}, **settings)
    assert loader.spec[CAMERA].shape == (4, 2, 20, 20, 3)
    assert loader.spec["task/image_primary"].shape == (4, 20, 20, 3)
    for place, path in enumerate(two_sizes):
        alone = make_loader(path, **settings).read(0, [0, 8, 9, 14])
        mixed = loader.read(place, [0, 8, 9, 14])
        for stored, seen in (
            (alone["observation"]["image_primary"], mixed["observation"]["image_primary"]),
            (alone["task"]["image_primary"], mixed["task"]["image_primary"]),
        ):
            out = np.empty((20, 20, 3), np.uint8)
            resize_image(stored.reshape(-1, *stored.shape[-3:])[-1], out)
            np.testing.assert_array_equal(seen.reshape(-1, 20, 20, 3)[-1], out)
    kept = list(loader.describe_datasets().values())
    assert [one["features"][CAMERA]["shape"] for one in kept] == [[24, 32, 3], [16, 16, 3]]
    assert [one["resized"] for one in kept] == [{CAMERA: [20, 20, 3]}] * 2
    assert loader.memory.num_bytes > 7 * sum(leaf.nbytes for leaf in loader.spec.values())


def test_images_of_one_size_are_left_to_the_device(
    make_loader: Callable, two_sizes: list[pathlib.Path]
) -> None:
    sized = make_loader(
        two_sizes[0], observations=("image_primary",), image_sizes={"image_primary": 20}
    )
    plain_loader = make_loader(two_sizes[0], observations=("image_primary",))
    assert sized.spec == plain_loader.spec
    assert sized.state(0) == plain_loader.state(0)
    assert "resized" not in next(iter(sized.describe_datasets().values()))


def test_a_camera_that_no_model_reads_is_not_resized(
    make_loader: Callable, two_sizes: list[pathlib.Path]
) -> None:
    message = (
        r"small, observation/image_primary: expected uint8\[24, 32, 3\], as .*large; found "
        r"uint8\[16, 16, 3\]\. Only cameras .* Leave image_primary out of data\.observations"
    )
    with pytest.raises(SchemaError, match=message):
        make_loader(*two_sizes, observations=("image_primary",))


def test_an_action_of_one_number_trains_as_a_vector_of_one(
    make_loader: Callable, tmp_path: pathlib.Path
) -> None:
    path = write_dataset(tmp_path / "d", {"action": (), "observation/width": ()})
    loader = make_loader(path, observations=("width",))
    assert loader.spec["action"].shape == (4, 2, 4, 1)
    assert loader.spec["observation/width"].shape == (4, 2, 1)
    dataset = open_dataset(str(path))
    recorded = np.asarray(dataset.columns["episodes"].read(0)["action"])
    statistics = dataset.statistics["action"]
    found = loader.read(0, [0, 1, 2, 3])["action"][:, -1, 0, 0]
    expected = (recorded[:4] - statistics.mean) / (statistics.std + np.float32(1e-8))
    np.testing.assert_array_equal(found, expected)
    assert loader.describe_datasets()[str(path)]["features"]["action"]["shape"] == [1]


@pytest.mark.parametrize(
    ("action", "found"),
    [
        (np.arange(24, dtype=np.int32), r"int32\[\]"),
        (np.ones((24, 7), np.uint8), r"uint8\[7\]"),
        ((10, 7), r"float32\[10, 7\]"),
    ],
)
def test_an_action_that_no_policy_learns_is_one_line(
    make_loader: Callable, tmp_path: pathlib.Path, action: object, found: str
) -> None:
    path = write_dataset(tmp_path / "d", {"action": action, CAMERA: (8, 8, 3)})
    message = rf"d, action: expected one float32 vector per step, .*; found {found}\. Write the"
    with pytest.raises(SchemaError, match=message):
        make_loader(path, observations=("image_primary",))


def test_every_vector_is_normalised_unless_the_config_says_otherwise(
    make_loader: Callable, tmp_path: pathlib.Path
) -> None:
    shapes = {"action": (2,), "observation/proprio": (3,), "observation/joints": (4,)}
    shapes |= {"observation/matrix": (2, 2), "observation/flag": np.arange(24) % 2 == 0}
    path = write_dataset(tmp_path / "d", shapes)
    names = ("proprio", "joints", "matrix", "flag")
    loader = make_loader(path, observations=names, batch_size=1)
    assert (loader.normalized, loader.raw) == (("proprio", "joints"), ("matrix", "flag"))
    dataset = open_dataset(str(path))
    stored = np.asarray(dataset.columns["episodes"].read(0)["observation/joints"])[1:3]
    before = make_loader(path, observations=names, normalized=("proprio",), batch_size=1)
    assert before.normalized == ("proprio",)
    np.testing.assert_array_equal(before.read(0, [2])["observation"]["joints"][0], stored)
    statistics = dataset.statistics["observation/joints"]
    found = loader.read(0, [2])["observation"]["joints"][0]
    np.testing.assert_allclose(found, (stored - statistics.mean) / statistics.std, rtol=1e-5)
    # The batches differ; the data's part of the state says so, the config's part does not.
    assert before.fingerprint == loader.fingerprint
    assert before.state(0).mixture != loader.state(0).mixture
    with pytest.raises(SchemaError, match=r"of these: proprio, joints; found matrix\. Leave"):
        make_loader(path, observations=names, normalized=("proprio", "matrix"))


def test_pixels_are_a_camera_wherever_images_are(
    make_loader: Callable, tmp_path: pathlib.Path
) -> None:
    shapes = {"action": (2,), "observation/image_left": (8, 12, 3), CAMERA: (8, 8, 3)}
    path = write_dataset(tmp_path / "d", shapes, pixels=["observation/image_left"])
    dataset = open_dataset(str(path))
    images = read_images(dataset, "observation/image_left", [LENGTH])
    stored = dataset.columns["steps"].read(LENGTH)["observation/image_left"]
    np.testing.assert_array_equal(images[0], stored)
    strips = [axes for axes in make_figure(dataset, 1).axes if axes.images]
    assert [axes.get_title(loc="left") for axes in strips] == ["image_left", "image_primary"]
    assert _cameras("left,primary", dataset.manifest, "d") == ("image_left", "image_primary")
    cameras = ("image_left", "image_primary")
    loader = make_loader(path, observations=cameras, conditioning="image_conditioned", batch_size=1)
    task = loader.read(0, [LENGTH - 1])["task"]
    goal = dataset.columns["steps"].read(LENGTH - 1)["observation/image_left"]
    assert task["pad_mask_dict"]["image_left"].tolist() == [True]
    np.testing.assert_array_equal(task["image_left"][0], goal)


def test_the_benchmark_needs_no_flags_on_any_set(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    still = np.ones((24, 2), np.float32)
    shapes = {"action": (2,), "language_embedding": (600,), "observation/state": (3,)}
    shapes |= {"observation/image_0": (8, 8, 3), "wrist": (8, 8, 3), "observation/still": still}
    path = write_dataset(tmp_path / "d", shapes)
    short = ["--num_batches", "5", "--rounds", "1", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark", str(path), *short])
    benchmark()
    first = capsys.readouterr().out.splitlines()[0]
    assert first.removeprefix(f"{path}: ").startswith("state, image_0; window 2")


def test_instructions_that_no_policy_can_tell_apart_are_reported(
    vocabulary: sentencepiece.SentencePieceProcessor,
) -> None:
    texts = ["拿起红色方块", "放下蓝色杯子", "pick up the 红", "pick up the bowl", ""]
    table = tokenize(texts, vocabulary.EncodeAsIds, 16)
    same, unknown = describe_texts(table, vocabulary.unk_id())
    assert "cannot tell them apart: '拿起红色方块' and '放下蓝色杯子'" in same
    assert "'放下蓝色杯子' (1 of 1 pieces); 'pick up the 红' (1 of 4 pieces)" in unknown
    assert "bowl" not in same + unknown
    many = tokenize([f"{n} 红" for n in range(1000)], vocabulary.EncodeAsIds, 16)
    same, unknown = describe_texts(many, vocabulary.unk_id())
    assert same.endswith("'0 红' and '1 红' and '2 红' and 997 more")
    assert unknown.endswith("; 997 more")


def test_a_summary_of_many_tasks_is_cut_with_a_count(tmp_path: pathlib.Path) -> None:
    tasks = [f"put object {n} on the shelf" for n in range(2000)]
    path = write_dataset(tmp_path / "d", {"action": (2,)}, tasks=tasks, num_episodes=2000)
    summary = summarize(open_dataset(str(path)))
    text = to_text(summary, plain())
    assert "put object 99 on" in text
    assert "put object 100 on" not in text
    assert " and 1,900 more with --json" in text
    assert len(json.loads(to_json(summary))["tasks"]) == 2000
