import dataclasses
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from converters.edit import Args, edit
from pipeline.data.column_reader import ColumnReader
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import TRANSFORMED_NAME
from pipeline.data.record import Values
from pipeline.data.rotations import Representation
from pipeline.errors import SchemaError
from pipeline.loading.batch import BatchSpec, FlatBatch, LeafSpec
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.loading.transformed_statistics import transformed_statistics
from pipeline.loading.transforms.action_transforms import RelativeActions
from pipeline.loading.transforms.input_transforms import StateNoise
from pipeline.loading.transforms.rotation_transforms import ConvertActionRotation
from pipeline.loading.transforms.transform import Draws
from tests.small_dataset import LENGTH, write_dataset

NAMES = ("x_m", "y_m")
CAMERA = "observation/image_primary"
MASKS = "observation/pad_mask_dict"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    shapes = {"action": (2,), "observation/proprio": (2,), CAMERA: (4, 4, 3)}
    dims = {"action": NAMES, "observation/proprio": NAMES}
    return write_dataset(tmp_path / "data", shapes, dims=dims)


def config_of(path: pathlib.Path, *transforms: object, **fields: object) -> DataConfig:
    return DataConfig(
        (DatasetConfig(str(path)),),
        vocabulary="",
        observations=("image_primary", "proprio"),
        action_horizon=3,
        transforms=transforms,
        **fields,
    )


def loader_of(config: DataConfig) -> Loader:
    return Loader(config, 24, [open_dataset(part.path) for part in config.datasets], None)


def test_what_is_normalised_has_the_mean_0_and_the_deviation_1(path: pathlib.Path) -> None:
    loader = loader_of(config_of(path, RelativeActions(NAMES[:1])))
    batch = loader.read(0, range(4 * LENGTH))
    real = batch["action_pad_mask"][:, -1, :, 0]
    actions = batch["action"][:, -1][real]
    # 15 chunks of 3 actions, and the last two steps of the 4 episodes have 2 and 1.
    assert len(actions) == 4 * (4 * 3 + 2 + 1)
    np.testing.assert_allclose(actions.mean(axis=0)[0], 0, atol=1e-5)
    np.testing.assert_allclose(actions.std(axis=0)[0], 1, rtol=1e-5)


def test_they_are_those_of_the_changed_values_and_only_of_them(path: pathlib.Path) -> None:
    dataset = open_dataset(str(path))
    config = config_of(path, RelativeActions(NAMES[:1]))
    found = transformed_statistics([dataset], 0, config)
    assert list(found) == ["action"]
    rows = []
    for number in range(dataset.num_episodes):
        record = dataset.columns["episodes"].read(number)
        action, state = record["action"], record["observation/proprio"]
        for t, ahead in itertools.product(range(LENGTH), range(3)):
            if t + ahead < LENGTH:
                rows.append(action[t + ahead] - state[t] * np.array([1, 0], np.float32))
    np.testing.assert_allclose(found["action"].mean, np.mean(rows, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["action"].std, np.std(rows, axis=0), rtol=1e-5)
    assert found["action"].count == len(rows)
    loader = loader_of(config)
    stored = dataset.statistics["observation/proprio"]
    np.testing.assert_array_equal(loader.statistics["observation/proprio"][0].mean, stored.mean)


def test_each_trajectory_is_read_once(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, episodes = ColumnReader.read, []

    def counted(reader: ColumnReader, index: int) -> Values:
        episodes.append(index)
        return read(reader, index)

    monkeypatch.setattr(ColumnReader, "read", counted)
    config = config_of(path, RelativeActions(NAMES[:1]))
    found = transformed_statistics([open_dataset(str(path))], 0, config)
    assert found["action"].count == 4 * (4 * 3 + 2 + 1)
    assert episodes == [0, 1, 2, 3]


def test_they_are_computed_once_for_the_same_transforms(path: pathlib.Path) -> None:
    config = config_of(path, RelativeActions(NAMES[:1]))
    first = loader_of(config).statistics["action"][0]
    file = path / TRANSFORMED_NAME
    written = file.stat().st_ino
    again = loader_of(config).statistics["action"][0]
    np.testing.assert_array_equal(first.p01, again.p01)
    # A file that is written again is another one.
    assert file.stat().st_ino == written
    loader_of(config_of(path, RelativeActions(NAMES)))
    assert file.stat().st_ino != written
    assert len(json.loads(file.read_text())) == 2


def test_a_file_that_was_changed_is_computed_again(path: pathlib.Path) -> None:
    config = config_of(path, RelativeActions(NAMES[:1]))
    right = loader_of(config).statistics["action"][0]
    file = path / TRANSFORMED_NAME
    kept = json.loads(file.read_text())
    (entry,) = kept.values()
    entry["statistics"]["action"]["mean"][0] += 1
    for text in (json.dumps(kept), "[1", "[]"):
        file.write_text(text)
        np.testing.assert_array_equal(loader_of(config).statistics["action"][0].mean, right.mean)


def test_a_directory_that_cannot_be_written_is_no_obstacle(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("pipeline.loading.transformed_statistics.write_text_atomically", refuse)
    loader = loader_of(config_of(path, RelativeActions(NAMES[:1])))
    assert loader.statistics["action"][0].count == 60
    assert not (path / TRANSFORMED_NAME).exists()


def test_random_transforms_do_not_change_them(path: pathlib.Path) -> None:
    config = config_of(path, StateNoise("proprio", (("x_m", 10.0),)))
    assert transformed_statistics([open_dataset(str(path))], 0, config) == {}


@dataclasses.dataclass(frozen=True)
class Brightness:
    """Adds the mean of an image as a vector."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        leaf = LeafSpec("float32", (*spec[CAMERA].shape[:2], 1), ("brightness",))
        return spec | {"observation/brightness": leaf}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        mean = batch[CAMERA].mean(axis=(2, 3, 4), dtype=np.float32)
        return batch | {"observation/brightness": mean[..., None]}


def test_a_vector_made_of_images_is_normalised_too(path: pathlib.Path) -> None:
    loader = loader_of(config_of(path, Brightness()))
    assert loader.normalized == ("proprio", "brightness")
    values = loader.read(0, range(24))["observation"]["brightness"][:, -1]
    assert values.shape == (24, 1)
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-4)


@dataclasses.dataclass(frozen=True)
class IsSeen:
    """Adds whether the camera has an image, as a vector; reads its pad mask alone."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        leaf = LeafSpec("float32", (*spec[f"{MASKS}/image_primary"].shape, 1), ("is_seen",))
        return spec | {"observation/is_seen": leaf}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        mask = batch[f"{MASKS}/image_primary"]
        return batch | {"observation/is_seen": mask[..., None].astype(np.float32)}


def test_the_mask_of_a_camera_is_there_without_its_images(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image is read")

    monkeypatch.setattr(ColumnReader, "read_into", refuse)
    other = write_dataset(tmp_path / "other", {"action": (2,), "observation/proprio": (2,)})
    config = config_of(path, IsSeen())
    lacking = DatasetConfig(str(other), missing=("image_primary",))
    config = dataclasses.replace(config, datasets=(*config.datasets, lacking))
    datasets = [open_dataset(part.path, config.keys_of(part)) for part in config.datasets]
    found = [transformed_statistics(datasets, n, config)["observation/is_seen"] for n in (0, 1)]
    assert [one.mean.tolist() for one in found] == [[1.0], [0.0]]


@dataclasses.dataclass(frozen=True)
class FlipGoal:
    """Mirrors the camera and its goal image, and adds the brightness of the goal."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        assert spec["task/image_primary"].shape[1:] == (4, 4, 3)
        leaf = LeafSpec("float32", (*spec[CAMERA].shape[:2], 1), ("brightness",))
        return spec | {"observation/goal_brightness": leaf}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        keys = (CAMERA, "task/image_primary")
        flipped = {key: np.ascontiguousarray(batch[key][..., ::-1, :]) for key in keys}
        mean = batch[keys[1]].mean(axis=(1, 2, 3), dtype=np.float32) / 255
        mean = np.repeat(mean[:, None, None], batch[CAMERA].shape[1], axis=1)
        return batch | flipped | {"observation/goal_brightness": mean}


@pytest.mark.parametrize("conditioning", ["image_conditioned", "multimodal"])
def test_a_transform_of_goal_images_has_them(path: pathlib.Path, conditioning: str) -> None:
    transforms = (RelativeActions(NAMES[:1]), FlipGoal())
    config = config_of(path, *transforms, conditioning=conditioning)
    loader = loader_of(config)
    episodes = [open_dataset(str(path)).episode(number, keys=[CAMERA]) for number in range(4)]
    images = np.concatenate([one["observation"]["image_primary"] for one in episodes])
    found = loader.statistics["observation/goal_brightness"][0]
    # Each step is its own goal.
    assert found.count == len(images)
    assert found.mean[0] == pytest.approx(images.mean() / 255, rel=1e-5)
    # Actions after the goal count in the statistics.
    assert loader.statistics["action"][0].count == 60
    assert loader.read(0, [3])["task"]["image_primary"].shape == (1, 4, 4, 3)


@pytest.mark.parametrize("names", [("brightness",), ("brightness", "proprio"), ("proprio",), ()])
def test_what_a_transform_adds_may_be_named_among_what_is_normalised(
    path: pathlib.Path, names: tuple[str, ...]
) -> None:
    loader = loader_of(config_of(path, Brightness(), normalized=names))
    assert sorted(loader.normalized) == [*names]


def test_what_no_transform_adds_cannot_be_normalised(path: pathlib.Path) -> None:
    message = r"of these: proprio, brightness; found contrast, image_primary\. Leave"
    with pytest.raises(SchemaError, match=message):
        loader_of(config_of(path, Brightness(), normalized=("image_primary", "contrast")))


@dataclasses.dataclass(frozen=True)
class Sum:
    """Adds the sum of the state, with a pad mask: False where the state is missing."""

    def spec_after(self, spec: BatchSpec) -> BatchSpec:
        state, mask = spec["observation/proprio"], spec[f"{MASKS}/proprio"]
        leaf = LeafSpec("float32", (*state.shape[:2], 1), ("sum_m",))
        return spec | {"observation/sum": leaf, f"{MASKS}/sum": mask}

    def apply(self, batch: FlatBatch, spec: BatchSpec, draws: Draws | None) -> FlatBatch:
        total = batch["observation/proprio"].sum(axis=-1, keepdims=True)
        return batch | {"observation/sum": total, f"{MASKS}/sum": batch[f"{MASKS}/proprio"].copy()}


@pytest.mark.parametrize("statistics", ["dataset", "mixture"])
def test_what_a_transform_makes_of_an_input_may_be_missing_with_it(
    path: pathlib.Path, tmp_path: pathlib.Path, statistics: str
) -> None:
    other = write_dataset(tmp_path / "other", {"action": (2,), CAMERA: (4, 4, 3)})
    config = config_of(path, Sum(), statistics=statistics)
    lacking = DatasetConfig(str(other), missing=("proprio",))
    loader = loader_of(dataclasses.replace(config, datasets=(*config.datasets, lacking)))
    values, zeros = (loader.read(n, range(24))["observation"]["sum"][:, -1] for n in (0, 1))
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-4)
    np.testing.assert_array_equal(zeros, np.zeros((24, 1)))
    first, second = loader.statistics["observation/sum"]
    np.testing.assert_array_equal(first.mean, second.mean)


def test_statistics_of_other_images_are_not_taken(tmp_path: pathlib.Path) -> None:
    means = []
    for name, seed in (("one", 1), ("two", 2)):
        images = np.random.default_rng(seed).integers(0, 128 * seed, (24, 4, 4, 3), np.uint8)
        shapes = {"action": (2,), "observation/proprio": (2,), CAMERA: images}
        path = write_dataset(tmp_path / name, shapes)
        if means:
            shutil.copy(tmp_path / "one" / TRANSFORMED_NAME, path)
        loader = loader_of(config_of(path, Brightness()))
        means.append(loader.statistics["observation/brightness"][0].mean[0])
        assert means[-1] == pytest.approx(images.mean(), rel=1e-5)


def test_statistics_of_quaternions_of_either_sign_are_not_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    angles = ("rx_rad", "ry_rad", "rz_rad")
    shapes = {"action": (3,), "observation/proprio": (2,), CAMERA: (4, 4, 3)}
    path = write_dataset(tmp_path / "data", shapes, dims={"action": angles})
    targets: dict[Representation, int] = {"quaternion_wxyz": 2, "rot6d": 1}
    for target, num_kept in targets.items():
        (path / TRANSFORMED_NAME).unlink(missing_ok=True)
        config = config_of(path, ConvertActionRotation(angles, "euler_xyz", target))
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.loading.transformed_statistics._QUATERNION_VERSION", 1)
            loader_of(config)
        loader_of(config)
        assert len(json.loads((path / TRANSFORMED_NAME).read_text())) == num_kept


def test_datasets_must_name_dimensions_alike(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shapes = {"action": (2,), "observation/proprio": (2,), CAMERA: (4, 4, 3)}
    other = write_dataset(tmp_path / "other", shapes, dims={"action": NAMES[::-1]})
    config = config_of(path, RelativeActions(NAMES[:1]))
    config = dataclasses.replace(config, datasets=(*config.datasets, DatasetConfig(str(other))))
    with pytest.raises(
        SchemaError, match=r"names of action: expected x_m, y_m, as .*; found y_m, x_m"
    ):
        loader_of(config)


def test_excluded_episodes_are_not_in_them(path: pathlib.Path) -> None:
    config = config_of(path, RelativeActions(NAMES[:1]))
    before = transformed_statistics([open_dataset(str(path))], 0, config)
    edit(Args(str(path), exclude="0"))
    after = transformed_statistics([open_dataset(str(path))], 0, config)
    # 15 real actions in the chunks of each of the 4 episodes.
    assert (before["action"].count, after["action"].count) == (4 * 15, 3 * 15)
    assert before["action"].mean.tolist() != after["action"].mean.tolist()


def excluding(config: DataConfig, *records: str) -> DataConfig:
    (part,) = config.datasets
    return dataclasses.replace(config, datasets=(dataclasses.replace(part, excluded=records),))


@pytest.mark.parametrize("is_kept", [True, False])
def test_an_excluded_image_does_not_change_those_of_trajectories(
    path: pathlib.Path, *, is_kept: bool
) -> None:
    config = config_of(path, RelativeActions(NAMES[:1]))
    first = loader_of(config)
    if not is_kept:
        (path / TRANSFORMED_NAME).unlink()
    resumed = loader_of(excluding(config, "steps/0.arrayrecord:3"))
    assert resumed.statistics["action"][0].count == 60
    assert resumed.restore(first.state(5)) == 5


def test_a_record_that_is_excluded_on_resume_stays_in_them(path: pathlib.Path) -> None:
    images = ("steps/0.arrayrecord:3", "steps/0.arrayrecord:9")
    config = excluding(config_of(path, Brightness()), images[0])
    first = loader_of(config)
    # The window of the next step has the image of step 3 too.
    assert first.statistics["observation/brightness"][0].count == 24 - 2
    resumed = loader_of(excluding(config, *images))
    assert resumed.restore(first.state(5)) == 5
    (path / TRANSFORMED_NAME).unlink()
    again = loader_of(excluding(config, *images))
    assert again.statistics["observation/brightness"][0].count == 24 - 4


def test_an_excluded_trajectory_is_not_in_them(path: pathlib.Path) -> None:
    config = config_of(path, RelativeActions(NAMES[:1]))
    excluded = excluding(config, "episodes/0.arrayrecord:0")
    assert loader_of(excluded).statistics["action"][0].count == 3 * 15
