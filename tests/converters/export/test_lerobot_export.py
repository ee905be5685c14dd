"""What is exported to LeRobot is what its own loader read, and comes back as the same dataset."""

import dataclasses
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from converters.export.lerobot import video_writer
from converters.export.lerobot.exported_images import EpisodeImages
from converters.export.lerobot.lerobot_columns import ExportedFeature, exported_schema
from converters.export.lerobot.lerobot_writer import export_lerobot
from converters.export.lerobot_export import main
from converters.job.convert import convert, convert_dataset
from converters.lerobot.lerobot_source import open_lerobot
from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.mapping.mapping_registry import find_mapping
from converters.sources.image_encoding import encode_jpeg, encode_png
from converters.sources.open_source import open_source
from converters.verify.__main__ import main as verify_main, open_converted
from converters.verify.verifier import Verifier
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Column, Feature
from pipeline.errors import DataError, SchemaError, UserError
from tests.converters.conftest import Toy
from tests.converters.export.lerobot_exports import (
    CONVENTIONS,
    RECORDED,
    TASKS,
    write_exported,
)
from tests.small_dataset import CONVENTIONS as CONVENTIONS_OF_TEN_HZ, write_dataset

ROOT = Path(__file__).parents[3]
IMAGE = "steps/observation/image"


def back(folder: Path, directory: Path) -> Dataset:
    """An export converted again by the mapping that it holds."""
    source = open_source(str(folder))
    convert(source, directory, find_mapping(source))
    return open_dataset(str(directory))


def exported(dataset: Path, out: Path, **options: Any) -> Path:
    return export_lerobot(open_dataset(str(dataset)), str(out), **options)


def encoded(dataset: Dataset, key: str) -> list[bytes]:
    column, _ = dataset.manifest.schema.find(key, "")
    reader = dataset.columns[column.name]
    return [bytes(reader.read(step)[key]) for step in range(len(reader))]


def check_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            check_equal(ours[key], theirs[key])
        return
    np.testing.assert_array_equal(ours, theirs)
    assert np.asarray(ours).dtype == np.asarray(theirs).dtype


# --- the way back


def test_images_and_numbers_come_back_as_the_same_bytes(
    short_dataset: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(str(short_dataset))
    untokened = [f.key for _, f in dataset.manifest.schema.features() if "tokens" not in f.key]
    folder = export_lerobot(dataset, str(tmp_path / "out"), storage="image")
    found = back(folder, tmp_path / "back")
    assert {f.key for _, f in found.manifest.schema.features()} == {*untokened}
    for key in ("observation/image_primary", "observation/image_wrist"):
        assert encoded(found, key) == encoded(dataset, key)
    for index in range(dataset.num_episodes):
        ours, theirs = (one.episode(index, keys=untokened) for one in (found, dataset))
        check_equal(ours, theirs)
    before, after = dataset.manifest.conventions, found.manifest.conventions
    assert after == dataclasses.replace(before, no_ops="removed_at_source", no_op_threshold=None)
    assert found.manifest.licences == {
        column: dataset.manifest.licences[column] for column in ("episodes", "steps")
    }
    source = open_converted(str(folder), found.manifest)
    manifest = load_manifest(epath.Path(tmp_path / "back"))
    assert Verifier(epath.Path(tmp_path / "back"), manifest, source).run().text() == ""


@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_a_video_keeps_every_frame_in_its_place(
    short_dataset: Path, tmp_path: Path, codec: video_writer.Codec
) -> None:
    dataset = open_dataset(str(short_dataset))
    folder = export_lerobot(dataset, str(tmp_path / "out"), codec=codec)
    found = back(folder, tmp_path / "back")
    assert found.manifest.provenance["video observation.images.primary"].startswith(codec)
    for key in ("image_primary", "image_wrist"):
        for index in (0, 3):
            ours, theirs = (
                one.episode(index, keys=[f"observation/{key}"])["observation"][key].astype(int)
                for one in (found, dataset)
            )
            error = np.abs(ours[:, None] - theirs[None]).mean((2, 3, 4))
            assert np.diag(error).max() < 5
            # Each frame is nearest to its own step.
            assert (np.argmin(error, axis=1) == np.arange(len(ours))).all()
    np.testing.assert_array_equal(found.episode(2)["action"], dataset.episode(2)["action"])


def everything(toy: Toy) -> Toy:
    """The toy with a feature of every kind and shape."""
    numbers = np.arange(3)
    for name, shape, dtype, values in (
        ("single", (1,), np.float32, numbers / 7),
        ("count", (1,), np.int64, numbers - 1),
        ("flag", (1,), np.bool_, numbers % 2),
        ("half", (2,), np.float16, np.repeat(numbers, 2) / 8),
        ("wide", (2,), np.float64, np.repeat(numbers, 2) / 3),
        ("grid", (2, 2), np.uint8, np.repeat(numbers, 4)),
        ("timestamp", (), np.float32, numbers / 10),
    ):
        feature = tfds.features.Tensor(shape=shape, dtype=dtype)
        held = np.float32(values) if np.dtype(dtype).kind == "f" else values.tolist()
        toy = toy.having(f"steps/{name}", feature, held)
    key = "steps/points"
    toy = toy.declaring(key, tfds.features.Tensor(shape=(5, 3), dtype=np.float32))
    toy = toy.holding(key, np.float32(np.arange(45) / 7))
    toy = toy.taking(FeatureMapping("observation/points", key, IMAGES))
    depth = [encode_png(np.full((6, 8, 1), 1000 * t, np.uint16)) for t in range(3)]
    key = "steps/observation/depth"
    toy = toy.declaring(
        key, tfds.features.Image(shape=(6, 8, 1), dtype=np.uint16, encoding_format="png")
    ).holding(key, depth)
    toy = toy.taking(FeatureMapping("observation/depth_top", key, IMAGES, depth=True))
    return toy.holding("steps/language_instruction", [b"lift", b"lift", "pose la crêpe".encode()])


def test_every_kind_of_feature_comes_back(toy: Toy, tmp_path: Path) -> None:
    toy = everything(toy)
    convert(toy.open(tmp_path), tmp_path / "dataset", toy.mapping)
    dataset = open_dataset(str(tmp_path / "dataset"))
    folder = export_lerobot(dataset, str(tmp_path / "out"), storage="image")
    found = back(folder, tmp_path / "back")
    features = {f.key: f for _, f in found.manifest.schema.features()}
    assert features["half"].dtype == "float32"
    assert features["observation/points"].shape == (5, 3)
    assert features["observation/depth_top"].source_unit == "mm"
    assert features["single"].shape == features["count"].shape == features["flag"].shape == (1,)
    for index in range(4):
        ours, theirs = found.episode(index), dataset.episode(index)
        assert ours["instruction"] == ["lift", "lift", "pose la crêpe"]
        assert ours.pop("source_id") == theirs.pop("source_id") == f"demo_{index}"
        assert ours.pop("half").tolist() == theirs.pop("half").tolist()
        check_equal(ours, theirs)


def test_a_png_stays_and_what_a_reader_would_see_differently_becomes_one(
    toy: Toy, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels[..., :3]).save(turned, "JPEG", exif=exif)
    held = [encode_png(pixels[..., :3]), encode_png(pixels), turned.getvalue()]
    toy = toy.holding(IMAGE, held)
    toy = toy.declaring(IMAGE, tfds.features.Image(shape=(8, 8, 3)))
    convert(toy.open(tmp_path), tmp_path / "dataset", toy.mapping)
    dataset = open_dataset(str(tmp_path / "dataset"))
    folder = export_lerobot(dataset, str(tmp_path / "out"), storage="image")
    column = pq.read_table(folder / "data/chunk-000/file-000.parquet").column(
        "observation.images.primary"
    )
    stored = [image["bytes"] for image in column.to_pylist()[:3]]
    assert stored[0] == held[0]
    assert [image[:4] for image in stored[1:]] == [b"\x89PNG"] * 2
    expected = dataset.episode(0)["observation"]["image_primary"]
    for image, frame in zip(stored, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), frame)


def test_names_are_those_that_lerobots_policies_know(tmp_path: Path) -> None:
    pixels = (16, 16, 3)
    names = {
        "action": ((2,), "action"),
        "observation/proprio": ((2,), "observation.state"),
        "observation/state": ((2,), "source.observation.state"),
        "observation/force/left": ((2,), "observation.force.left"),
        "timestamp": ((), "source.timestamp"),
        "source/timestamp": ((), "source.source.timestamp"),
        "observation/image_primary": (pixels, "observation.images.primary"),
        "observation/images/primary": (pixels, "observation.images.images.primary"),
        "observation/images/top": (pixels, "observation.images.top"),
        "observation/front": (pixels, "observation.images.front"),
        "goal_image": (pixels, "goal_image"),
    }
    shapes = {key: shape for key, (shape, _) in names.items()}
    manifest = open_dataset(str(write_dataset(tmp_path / "d", shapes, num_episodes=1))).manifest
    found = {one.feature.key: one.name for one in exported_schema(manifest, "video").features}
    assert found == {key: name for key, (_, name) in names.items()}


def test_excluded_episodes_are_left_out_and_the_others_numbered_again(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", {"action": (3,)})
    dataset = open_dataset(str(directory))
    manifest = dataclasses.replace(
        dataset.manifest, excluded_episodes=(0, 2), failed_episodes=(2, 3), tasks=("a", "b")
    )
    folder = export_lerobot(dataclasses.replace(dataset, manifest=manifest), str(tmp_path / "out"))
    found = back(folder, tmp_path / "back")
    assert (found.num_episodes, found.manifest.tasks) == (2, ("b",))
    for index, original in enumerate((1, 3)):
        ours, theirs = found.episode(index)["action"], dataset.episode(original)["action"]
        np.testing.assert_array_equal(ours, theirs)
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    assert rows.column("index").to_pylist() == list(range(12))
    own = json.loads((folder / "meta" / "octograin.json").read_text())
    assert (own["excluded_episodes"], own["failed_episodes"]) == ([0, 2], [1])
    mapping = (folder / "meta" / "octograin.toml").read_text()
    assert "# octograin edit DST --failed 1\n" in mapping


def test_the_mapping_of_an_export_is_found_and_another_one_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_dataset(tmp_path / "libero_mini", {"action": (3,)})
    folder = exported(directory, tmp_path / "out")
    convert_dataset(str(folder), str(tmp_path / "back"))
    assert open_dataset(str(tmp_path / "back")).manifest.conventions == CONVENTIONS_OF_TEN_HZ
    monkeypatch.setattr(sys, "argv", ["octograin verify", str(folder), str(tmp_path / "back")])
    verify_main()
    assert "conventions: not compared" not in capsys.readouterr().out
    own = folder / "meta" / "octograin.toml"
    other = tmp_path / "other.toml"
    other.write_text(own.read_text().replace("10.0", "5.0"))
    convert_dataset(str(folder), str(tmp_path / "again"), str(other))
    rate = open_dataset(str(tmp_path / "again")).manifest.conventions.control_frequency_hz
    assert rate == 5
    own.write_text("features = 3")
    with pytest.raises(
        DataError, match=r"out/meta/octograin\.toml: expected a valid SourceMapping"
    ):
        convert_dataset(str(folder), str(tmp_path / "third"))


# --- what LeRobot's loader read


@pytest.fixture(scope="module")
def recorded_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dataset whose exports LeRobot's loader has read, exported again, by storage."""
    folder = tmp_path_factory.mktemp("exports")
    dataset = open_dataset(str(write_exported(folder / "dataset")))
    return {
        storage: export_lerobot(dataset, str(folder / storage), storage=storage)
        for storage in ("image", "video")
    }


@pytest.mark.parametrize("storage", ["image", "video"])
def test_an_export_holds_what_lerobots_loader_returned(
    recorded_sets: dict[str, Path], storage: str
) -> None:
    with np.load(RECORDED / f"{storage}.npz") as file:
        recorded = {name: file[name] for name in file.files}
    source = open_lerobot(recorded_sets[storage])
    source.check_files()
    assert source.notes["fps"] == str(recorded["fps"]) == "12.5"
    episodes = [e.values for shard in source.shards for e in source.episodes(shard)]
    compared = set()
    for feature in source.dataset.features.values():
        found = [v for values in episodes for v in values[feature.key.key]]
        if feature.key.kind == "tensor":
            # torch makes int64 of the integers that it gets.
            assert recorded[feature.name].dtype.kind == np.dtype(feature.key.dtype).kind
            np.testing.assert_array_equal(np.stack(found), recorded[feature.name])
        else:
            images = [np.asarray(Image.open(io.BytesIO(i))) for i in found]
            frames = np.stack([images[n] for n in recorded["image_frames"]]).astype(int)
            expected = recorded[f"images/{feature.name}"].astype(int)
            error = np.abs(frames.reshape(expected.shape) - expected)
            # Videos are decoded there, and decoded and encoded as JPEG here.
            assert error.mean() <= (2 if feature.storage == "video" else 0)
        compared.add(feature.name)
    assert len(compared) == 15
    texts = [text.decode() for values in episodes for text in values["steps/task"]]
    assert texts == recorded["task"].tolist()
    assert texts[6:12] == [TASKS[1]] * 4 + [TASKS[0]] * 2
    actions = recorded["action"]
    np.testing.assert_array_equal(recorded["chunk"], actions[[4, 5, 5, 5]])
    assert recorded["chunk_is_pad"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("storage", ["image", "video"])
def test_statistics_are_those_that_lerobot_computes(
    recorded_sets: dict[str, Path], storage: str
) -> None:
    written = json.loads((recorded_sets[storage] / "meta" / "stats.json").read_text())
    computed = json.loads((RECORDED / f"{storage}.json").read_text())
    assert written.keys() == computed.keys()
    for name, expected in computed.items():
        assert written[name].keys() == expected.keys()
        assert written[name]["count"] == expected["count"]
        is_video = storage == "video" and name.startswith("observation.images.")
        for statistic in ("min", "max", "mean", "std"):
            found = np.ravel(written[name][statistic])
            # Videos lose some of the extreme pixels. There squares are summed up as float32.
            tolerance = 0.05 if is_video and "depth" not in name else 2e-4
            np.testing.assert_allclose(found, expected[statistic], rtol=1e-4, atol=tolerance)


def test_quantiles_are_those_of_all_values(recorded_sets: dict[str, Path]) -> None:
    meta = recorded_sets["image"] / "meta"
    stats = json.loads((meta / "stats.json").read_text())
    data = pq.read_table(meta.parent / "data/chunk-000/file-000.parquet")
    shares = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
    actions = np.array(data.column("action").to_pylist())
    frames = [
        np.asarray(Image.open(io.BytesIO(image["bytes"]))) / 255
        for image in data.column("observation.images.primary").to_pylist()
    ]
    for name, share in shares.items():
        expected = np.quantile(actions, share, axis=0)
        np.testing.assert_allclose(stats["action"][name], expected, rtol=1e-6)
        expected = np.quantile(np.concatenate(frames), share, axis=(0, 1))
        found = np.ravel(stats["observation.images.primary"][name])
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    row = pq.read_table(meta / "episodes/chunk-000/file-000.parquet").to_pylist()[1]
    np.testing.assert_allclose(row["stats/action/max"], actions[6:12].max(0), rtol=1e-6)
    assert np.shape(row["stats/observation.images.primary/q50"]) == (3, 1, 1)


# --- files of limited size


def test_episodes_go_to_several_files(tmp_path: Path) -> None:
    conventions = dataclasses.replace(CONVENTIONS, control_frequency_hz=0.01)
    shapes = {"action": (3,), "observation/image_primary": (16, 16, 3)}
    # 600 s per episode, of 1,000 s in a file of video.
    directory = write_dataset(tmp_path / "slow", shapes, conventions=conventions)
    folder = exported(directory, tmp_path / "out")
    assert len(list((folder / "videos").rglob("*.mp4"))) == 2
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    name = "videos/observation.images.primary"
    assert [row[f"{name}/file_index"] for row in rows] == [0, 0, 1, 1]
    assert [row[f"{name}/from_timestamp"] for row in rows] == [0, 600, 0, 600]
    found = back(folder, tmp_path / "back")
    assert found.num_steps == 24
    expected = open_dataset(str(directory)).episode(3)["action"]
    np.testing.assert_array_equal(found.episode(3)["action"], expected)


# --- what is refused


def test_a_camera_of_lerobot_has_its_name_again(tmp_path: Path) -> None:
    pixels = np.zeros((12, 8, 8, 3), np.uint8)
    keys = ("observation/image_top", "observation/images/top", "observation/images/image_left")
    values = {"action": np.zeros((12, 2), np.float32)} | dict.fromkeys(keys, pixels)
    dataset = open_dataset(str(write_dataset(tmp_path / "d", values, num_episodes=2)))
    features = exported_schema(dataset.manifest, "image").features
    names = {one.feature.key: one.name for one in features}
    assert [names[key] for key in keys] == [
        "observation.images.top",
        "observation.images.images.top",  # the first has it
        "observation.images.image_left",
    ]


def test_odd_sizes_are_refused_together_before_anything_is_written(tmp_path: Path) -> None:
    shapes = {
        "action": (3,),
        "observation/image_primary": (15, 16, 3),
        "observation/image_wrist": (16, 17, 3),
    }
    directory = write_dataset(tmp_path / "odd", shapes, num_episodes=1)
    message = (
        r"odd: expected images of an even height and width.*; found observation/image_primary of "
        r"15x16, observation/image_wrist of 16x17\. Export images instead: --image\."
    )
    with pytest.raises(SchemaError, match=message):
        exported(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder = exported(directory, tmp_path / "out", storage="image")
    found = back(folder, tmp_path / "back")
    wrist = "observation/image_wrist"
    assert encoded(found, wrist) == encoded(open_dataset(str(directory)), wrist)


def test_a_rate_that_an_encoder_does_not_take_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    conventions = dataclasses.replace(CONVENTIONS, control_frequency_hz=1000.0)
    shapes = {"action": (3,), "observation/image_primary": (16, 16, 3)}
    directory = write_dataset(tmp_path / "fast", shapes, conventions=conventions)
    message = (
        r"fast, observation/image_primary: expected images of a size and a rate that the encoder "
        r"of av1 takes; found 16x16 at 1000 steps per second: .*\. Name another --codec, or --image"
    )
    with pytest.raises(UserError, match=message):
        exported(directory, tmp_path / "out")
    assert capfd.readouterr().err == ""
    found = back(exported(directory, tmp_path / "out", codec="h264"), tmp_path / "back")
    assert found.manifest.conventions.control_frequency_hz == 1000


def test_an_image_of_another_size_is_refused_with_its_place() -> None:
    feature = Feature("observation/top", "image", (8, 8, 3), "uint8", "uint8", "steps/top")
    one = ExportedFeature(Column("steps", "step", (feature,)), feature, "top", "image")
    sizes = [(8, 8), (8, 10)]
    encoded_ones = [encode_jpeg(np.zeros((*size, 3), np.uint8)) for size in sizes]
    images = EpisodeImages(one, encoded_ones, "data, episode 3, observation/top")
    message = "data, episode 3, observation/top, step 1: expected an image of 8x8.*found 8x10"
    with pytest.raises(SchemaError, match=message):
        images.stored()
    with pytest.raises(SchemaError, match=message):
        images.pixels(1)


def test_a_codec_that_pyav_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(video_writer.av, "codecs_available", {"libx264"})
    directory = write_dataset(
        tmp_path / "d", {"action": (3,), "observation/image_primary": (16, 16, 3)}
    )
    message = (
        r"--codec av1: expected a PyAV with the encoder libsvtav1; found PyAV [\d.]+ without it\. "
        r"Install the wheel of PyAV \(`pip install av`\), name --codec h264, or name --image\."
    )
    with pytest.raises(UserError, match=message):
        exported(directory, tmp_path / "out")


def test_only_an_unchanged_export_is_replaced(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", {"action": (3,)})
    folder = exported(directory, tmp_path / "out")
    with pytest.raises(UserError, match=r"found one that exists\. Replace it with --overwrite\."):
        exported(directory, folder)
    exported(directory, folder, overwrite=True)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"found other files: notes\.txt\. Name another"):
        exported(directory, folder, overwrite=True)
    (folder / "notes.txt").unlink()
    info = folder / "meta/info.json"
    written = info.read_text()
    info.write_text(written.replace('"robot_type": null', '"robot_type": "me"'))
    assert len(info.read_text()) == len(written)
    with pytest.raises(UserError, match=r"info\.json, which was changed after the export"):
        exported(directory, folder, overwrite=True)
    info.write_text(written)
    own = json.loads((folder / "meta/octograin.json").read_text())
    assert {"meta/info.json", "meta/stats.json"} < own["checksums"].keys()
    # As an episode that LeRobot recorded into it.
    data = folder / "data/chunk-000/file-000.parquet"
    data.write_bytes(data.read_bytes() + b"more")
    with pytest.raises(UserError, match=r"file-000\.parquet, which was changed after the export"):
        exported(directory, folder, overwrite=True)
    (folder / "meta" / "octograin.json").unlink()
    with pytest.raises(UserError, match=r"a folder without meta/octograin\.json, which lists"):
        exported(directory, folder)
    assert data.exists()
    (tmp_path / "empty").mkdir()
    assert exported(directory, tmp_path / "empty").is_dir()


def test_a_killed_export_leaves_nothing_that_opens(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path / "d", {"action": (3,)})
    code = f"""
import os, signal
from converters.export.lerobot.lerobot_writer import export_lerobot
from pipeline.data.dataset import open_dataset

def killed(num_episodes, num_bytes):
    os.kill(os.getpid(), signal.SIGKILL)

export_lerobot(open_dataset({str(directory)!r}), on_progress=killed)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".d_lerobot.*.tmp"))) == 1
    assert not (tmp_path / "d_lerobot").exists()
    folder = export_lerobot(open_dataset(str(directory)))
    assert folder == tmp_path / "d_lerobot"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_full_disk_leaves_nothing_and_one_line(tmp_path: Path, storage: str) -> None:
    shapes = {"action": (3,), "observation/image_primary": (64, 64, 3)}
    directory = write_dataset(tmp_path / "d", shapes)
    code = f"""
import resource, signal, sys
from converters.export import lerobot_export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.argv = ["octograin export --to lerobot", {str(directory)!r}, "--{storage}"]
lerobot_export.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: .*d_lerobot.*: expected to write the export; found .*File too large\. "
        r"Free space on the device or allow writing, and run the same command again\.\n",
        done.stderr,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


# --- the command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["octograin export --to lerobot", *map(str, arguments)])
    main()


def test_the_command_lists_names_and_what_is_left_out(
    short_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    call(monkeypatch, short_dataset, out, "--image")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"4 episodes, 53 steps, \d\.\d MB in \d+\.\d s", lines[0])
    assert lines[1] == f"LeRobot 3.0: {out}"
    assert [line.split() for line in lines if "image_wrist" in line] == [
        ["observation/image_wrist", "observation.images.wrist"]
    ]
    assert lines[-3:] == [
        "not exported, as LeRobot has no tokens: observation/vggt_tokens",
        f'with LeRobot: LeRobotDataset("local/out", root="{out}")',
        f"back: octograin convert {out} DST",
    ]
    left_out = json.loads((out / "meta" / "octograin.json").read_text())["left_out"]
    assert left_out == ["observation/vggt_tokens"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--video --image", "error: --video --image: expected one of them; found both."),
        ("--image --codec h264", "expected a codec for videos alone; found --codec h264."),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, tmp_path, *flags.split())
    assert message in capsys.readouterr().err


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("converters.export.lerobot.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, tmp_path)
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"error: --to lerobot: expected the packages that write LeRobot datasets; found .*pyarrow.*"
        r"In the checkout, run `pip install -c constraints\.txt -e '\.\[lerobot\]'`\.\n",
        line,
    )
