"""Depth goes from a source to a dataset, a batch, a figure and back, exact to the millimetre."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from rich.console import Console

from converters.export.rlds_export import export_rlds
from converters.job.bad_episodes import Checks
from converters.job.convert import convert
from converters.mapping.computed_source import compute_source
from converters.mapping.mapped_features import IMAGES, FeatureMapping
from converters.mapping.mapping_proposal import describe
from converters.mapping.mapping_registry import read_mapping
from converters.operations.array_operations import Divide
from converters.sources.image_encoding import encode_png
from converters.sources.open_source import open_source
from converters.verify.verifier import Verifier
from pipeline.benchmark.measure import Floor
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError, SchemaError
from pipeline.inspection.dataset_figure import draw_figure, make_figure
from pipeline.inspection.dataset_summary import read_images, summarize, summarize_episode
from pipeline.inspection.summary_tables import to_text
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from tests.converters.conftest import Toy

SIZE = (6, 8)
MILLIMETRES = np.random.default_rng(0).integers(0, 2**16, (3, *SIZE)).astype(np.uint16)
MILLIMETRES[:, 0, :3] = [0, 1, 65535]
"""uint16 (t h w): 0 is no reading."""
METRES = (MILLIMETRES / 1000.0).astype(np.float32)
IMAGE = tfds.features.Image(shape=(*SIZE, 1), dtype=np.uint16, encoding_format="png")


def taking(name: str, **options: Any) -> FeatureMapping:
    return FeatureMapping(
        f"observation/{name}", f"steps/observation/{name}", IMAGES, depth=True, **options
    )


def tensor(shape: tuple[int, ...], dtype: Any) -> Any:
    return tfds.features.Tensor(shape=shape, dtype=dtype)


@pytest.fixture
def deep(toy: Toy) -> Toy:
    """The toy with one depth camera in each form that a source may have."""
    toy = toy.declaring("steps/observation/png", IMAGE)
    toy = toy.holding("steps/observation/png", [encode_png(x[..., None]) for x in MILLIMETRES])
    toy = toy.taking(taking("png"))
    for name, values, options in (
        ("mm", MILLIMETRES[..., None], {}),
        ("m", METRES, {"depth_unit": "m"}),
        ("float_mm", MILLIMETRES.astype(np.float32), {"depth_unit": "mm"}),
    ):
        key = f"steps/observation/{name}"
        toy = toy.declaring(key, tensor(values.shape[1:], values.dtype)).holding(key, values)
        toy = toy.taking(taking(name, **options))
    return toy


KEYS = ("png", "mm", "m", "float_mm")


@pytest.fixture
def source(deep: Toy, tmp_path: Path) -> Any:
    return deep.open(tmp_path / "source")


@pytest.fixture
def dataset(deep: Toy, source: Any, tmp_path: Path) -> Dataset:
    convert(source, tmp_path / "out", deep.mapping, checks=Checks(check_images=True))
    return open_dataset(str(tmp_path / "out"))


def test_every_form_becomes_the_same_metres(dataset: Dataset, source: Any) -> None:
    observation = dataset.episode(1)["observation"]
    for name in KEYS:
        assert observation[name].dtype == np.float32
        np.testing.assert_array_equal(observation[name], METRES[..., None])
    records = dataset.columns["steps"]
    assert records.read(0)["observation/png"] == encode_png(MILLIMETRES[0][..., None])
    assert Verifier(epath.Path(dataset.path), dataset.manifest, source).run().text() == ""
    assert Verifier(epath.Path(dataset.path), dataset.manifest).run().text() == ""


def test_a_depth_camera_is_in_the_batch_at_its_size_and_in_no_goal(dataset: Dataset) -> None:
    config = DataConfig(
        datasets=(DatasetConfig(dataset.path),),
        vocabulary="",
        observations=("image_primary", "m"),
        conditioning="image_conditioned",
        num_threads=0,
        prefetch_batches=0,
    )
    with Loader(config, 2, [dataset], None) as loader:
        batch = next(iter(loader))
        steps = loader.read(0, [1])["observation"]["m"]
        floor = Floor(loader)
        reads = floor.plan(loader.order()[0])
        assert floor.seconds([reads]) > 0
        shapes = {shape for read in reads for _, shape in read.images}
        (described,) = loader.describe_datasets().values()
    assert batch["observation"]["m"].shape == (2, 2, *SIZE, 1)
    assert batch["observation"]["m"].dtype == np.float32
    np.testing.assert_array_equal(steps[0], METRES[:2, ..., None])
    assert shapes == {(8, 8, 3), (*SIZE, 1)}
    assert "m" not in batch["task"]
    assert set(batch["observation"]["pad_mask_dict"]) == {"image_primary", "m"}
    # A policy knows by it what is in metres.
    kinds = {key: feature.get("kind") for key, feature in described["features"].items()}
    assert kinds["observation/m"] == "depth"
    assert kinds["observation/image_primary"] is None


def test_metres_and_millimetres_as_tensors_stay_as_they_are(toy: Toy, tmp_path: Path) -> None:
    metres = np.random.default_rng(1).uniform(0, 5, (3, 4, 5, 1)).astype(np.float32)
    metres[0, 0, :3, 0] = [1e-7, np.nextafter(np.float32(1), np.float32(2)), 1e6]
    given = {"metres": metres, "plane": metres[..., 0], "millimetres": MILLIMETRES[:, :2]}
    for name, values in given.items():
        key = f"steps/observation/{name}"
        toy = toy.declaring(key, tensor(values.shape[1:], values.dtype)).holding(key, values)
        toy = toy.taking(FeatureMapping(f"observation/{name}", key, IMAGES))
    convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)
    config = DataConfig(
        (DatasetConfig(str(tmp_path / "out")),),
        vocabulary="",
        observations=("image_primary", *given),
        num_threads=0,
        prefetch_batches=0,
    )
    dataset = open_dataset(str(tmp_path / "out"))
    with Loader(config, 1, [dataset], None) as loader:
        found = loader.read(0, [1])["observation"]
        assert list(loader.normalizers) == ["action"]
    for name, values in given.items():
        assert found[name].dtype == (np.int32 if name == "millimetres" else np.float32)
        np.testing.assert_array_equal(found[name][0], values[:2])
    assert "plane" in to_text(summarize(dataset), Console(width=120))
    assert draw_figure(dataset, 0)[:4] == b"\x89PNG"


def test_depth_of_another_size_is_refused_in_a_mixture(
    deep: Toy, dataset: Dataset, tmp_path: Path
) -> None:
    key = "steps/observation/m"
    small = deep.declaring(key, tensor((3, 4), np.float32)).holding(key, METRES[:, :3, :4])
    convert(small.open(tmp_path / "small"), tmp_path / "other", small.mapping)
    parts = tuple(DatasetConfig(str(tmp_path / name)) for name in ("out", "other"))
    config = DataConfig(datasets=parts, vocabulary="", observations=("image_primary", "m"))
    message = r"other, observation/m: expected float32\[6, 8, 1\], as .*; found float32\[3, 4, 1\]"
    with pytest.raises(SchemaError, match=message):
        Loader(config, 2, [dataset, open_dataset(str(tmp_path / "other"))], None)


def test_a_source_that_differs_is_found(deep: Toy, dataset: Dataset, tmp_path: Path) -> None:
    other = METRES.copy()
    other[1, 2, 3] += 0.002
    png = [encode_png(x[..., None]) for x in MILLIMETRES[[0, 1, 1]]]
    changed = deep.holding("steps/observation/m", other).holding("steps/observation/png", png)
    source = changed.open(tmp_path / "changed")
    found = Verifier(epath.Path(dataset.path), load_manifest(epath.Path(dataset.path)), source)
    lines = found.run().text().splitlines()
    assert len(lines) == 8  # two features of each of four episodes
    wanted = MILLIMETRES[1, 2, 3]
    assert f"observation/m: expected {wanted + 2} mm at [2, 3], as " in lines[0]
    assert f"found {wanted} mm, and 0 more values that differ" in lines[0]
    assert "observation/png: expected " in lines[1]


def test_an_export_has_the_values_of_the_source(dataset: Dataset, tmp_path: Path) -> None:
    version = export_rlds(dataset, str(tmp_path / "back"))
    back = open_source(str(version))
    kinds = {name: back.keys[f"steps/observation/{name}"] for name in KEYS}
    assert [(k.kind, k.dtype, k.shape) for k in kinds.values()] == [
        ("image", "uint16", (*SIZE, 1)),
        ("image", "uint16", (*SIZE, 1)),
        ("tensor", "float32", SIZE),
        ("tensor", "float32", SIZE),
    ]
    values: Any = next(back.episodes(back.shards[0])).values
    np.testing.assert_array_equal(values["steps/observation/m"], METRES)
    np.testing.assert_array_equal(values["steps/observation/float_mm"], MILLIMETRES)


def test_a_summary_and_a_figure_show_the_range_of_readings(dataset: Dataset) -> None:
    summary = summarize(dataset)
    share = float((MILLIMETRES > 0).mean())
    assert summary["depth"].keys() == {f"observation/{name}" for name in KEYS}
    for found in summary["depth"].values():
        assert (found["steps"], found["min_m"], found["max_m"]) == (8, 0.001, 65.535)
        assert found["readings"] == pytest.approx(share, abs=0.02)
    text = to_text(summary, Console(force_terminal=False, width=120))
    assert "observation/png        0.001 to 65.535 m, readings at 9" in text
    of_episode = summarize_episode(dataset, 2)["depth"]["observation/m"]
    assert (of_episode["steps"], of_episode["readings"]) == (3, share)
    assert read_images(dataset, "observation/m", [1]).dtype == np.float32
    assert read_images(dataset, "observation/image_primary", [1]).dtype == np.uint8
    strips = [axes for axes in make_figure(dataset, 0).axes if axes.images]
    assert "m, 0.00 to 65.54 m" in [axes.get_title(loc="left") for axes in strips]
    assert draw_figure(dataset, None)[:4] == b"\x89PNG"


def test_metres_are_rounded_to_the_millimetre(toy: Toy, tmp_path: Path) -> None:
    key = "steps/observation/m"
    values = np.full((3, *SIZE), 1.0, np.float64)
    values[0, 0, :4] = [0.0004, 0.0016, 65.5354, 1.2345678]
    toy = toy.declaring(key, tensor(SIZE, np.float64)).holding(key, values)
    toy = toy.taking(taking("m", depth_unit="m"))
    source = toy.open(tmp_path)
    convert(source, tmp_path / "out", toy.mapping)
    dataset = open_dataset(str(tmp_path / "out"))
    found = dataset.step(0, 0)["observation"]["m"][0, :4, 0]
    np.testing.assert_array_equal(found, np.array([0, 0.002, 65.535, 1.235], np.float32))
    assert Verifier(epath.Path(dataset.path), dataset.manifest, source).run().text() == ""


@pytest.mark.parametrize(
    ("value", "unit", "message"),
    [
        (
            -0.01,
            "m",
            r"expected depth from 0 to 65\.535 m, 0 where there is no reading; found 1 other",
        ),
        (65.54, "m", r"found 1 other values, such as 65\.54\. Write 0 for them at the source"),
        (np.nan, "m", "such as nan"),
        (np.inf, "m", "such as inf"),
        (70000.0, "mm", r"expected depth from 0 to 65535 mm, .* such as 70000"),
    ],
)
def test_depth_that_does_not_fit_is_refused(
    toy: Toy, tmp_path: Path, value: float, unit: str, message: str
) -> None:
    key = "steps/observation/m"
    values = np.ones((3, *SIZE), np.float32)
    values[2, 1, 1] = value
    toy = toy.declaring(key, tensor(SIZE, np.float32)).holding(key, values)
    toy = toy.taking(taking("m", depth_unit=unit))
    with pytest.raises(DataError, match=f"{key}, step 2: .*{message}"):
        convert(toy.open(tmp_path), tmp_path / "out", toy.mapping)


@pytest.mark.parametrize(
    ("feature", "options", "message"),
    [
        (tensor(SIZE, np.float32), {}, 'with its unit.* Set depth_unit = "m" or "mm" for it'),
        (tensor(SIZE, np.uint16), {"depth_unit": "m"}, r"expected depth in m, float32 or float64"),
        (
            tensor(SIZE, np.uint8),
            {},
            r"uint16 or int32 or float32 or float64 \[h, w\] or \[h, w, 1\]",
        ),
        (tensor((*SIZE, 3), np.uint16), {}, r"found tensor uint16\[6, 8, 3\] in the column steps"),
        (tensor(SIZE, np.uint16), {"column": "episodes"}, "in the column episodes. Correct column"),
        (tfds.features.Image(shape=(*SIZE, 1)), {}, r"expected depth in mm, uint16 .*image uint8"),
    ],
)
def test_a_source_key_that_is_no_depth_is_refused(
    toy: Toy, tmp_path: Path, feature: Any, options: dict, message: str
) -> None:
    taken = dataclasses.replace(taking("m"), **options)
    toy = toy.declaring("steps/observation/m", feature).taking(taken)
    with pytest.raises(SchemaError, match=message):
        toy.mapping.schema(toy.open(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_unit": "m"}, "has a depth_unit, so it needs depth = true"),
        ({"depth": True, "grey_to_rgb": True}, "one source and stays one channel"),
        ({"depth": True, "source": "", "joined": ("a", "b")}, "is depth, which has one source"),
    ],
)
def test_a_mapping_that_contradicts_itself_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureMapping(**{"key": "observation/m", "source": "steps/m", "column": IMAGES} | options)


def test_an_eight_bit_image_in_place_of_depth_is_refused(deep: Toy, tmp_path: Path) -> None:
    grey = [encode_png(x[..., None].astype(np.uint8)) for x in MILLIMETRES]
    spoiled = deep.holding("steps/observation/png", grey)
    with pytest.raises(DataError, match=r"png, step 0: expected a depth image.* the mode L"):
        convert(spoiled.open(tmp_path), tmp_path / "out", spoiled.mapping)
    cut = [encode_png(x[..., None])[:-30] for x in MILLIMETRES]
    spoiled = deep.holding("steps/observation/png", cut)
    with pytest.raises(DataError, match="step 0: expected a readable JPEG or PNG image"):
        convert(
            spoiled.open(tmp_path / "cut"),
            tmp_path / "out2",
            spoiled.mapping,
            checks=Checks(check_images=True),
        )


def test_depth_is_proposed_for_what_looks_like_it(deep: Toy, tmp_path: Path) -> None:
    key = "steps/observation/depth_front"
    toy = deep.declaring(key, tensor(SIZE, np.float32)).holding(key, METRES)
    text = describe(toy.open(tmp_path))
    assert 'source = "steps/observation/png"\ncolumn = "steps"\ndepth = true  # CHECK\n' in text
    assert (
        f'source = "{key}"\ncolumn = "steps"\ndepth = true  # CHECK\n'
        'depth_unit = "m"  # CHECK: mm or m\n'
    ) in text
    (tmp_path / "mapping.toml").write_text(text)
    mapping = read_mapping(tmp_path / "mapping.toml")
    units = {m.source: m.depth_unit for m in mapping.features if m.depth}
    assert units == {"steps/observation/png": "mm", key: "m"}


def test_depth_in_another_unit_is_scaled_by_the_mapping(toy: Toy, tmp_path: Path) -> None:
    key = "steps/observation/m"  # 5000 per metre, as in the TUM sets
    raw = np.array(MILLIMETRES // 5 * 5, np.float32)
    toy = toy.declaring(key, tensor(SIZE, np.float32)).holding(key, raw)
    toy = toy.taking(taking("m", depth_unit="m", compute=(Divide(5000.0),)))
    source = toy.open(tmp_path)
    convert(source, tmp_path / "out", toy.mapping)
    dataset = open_dataset(str(tmp_path / "out"))
    expected = np.rint(raw.astype(np.float64) / 5).astype(np.float32)[..., None] / np.float32(1000)
    np.testing.assert_array_equal(dataset.episode(0)["observation"]["m"], expected)
    computed, _ = compute_source(source, toy.mapping)
    assert Verifier(epath.Path(dataset.path), dataset.manifest, computed).run().text() == ""
