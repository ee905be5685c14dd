"""The mixtures of Octo and OpenVLA: their names and numbers, and the configs that take one."""

import dataclasses
import pathlib

import pytest

from pipeline.data.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.loading.data_config import DataConfig
from pipeline.loading.loader_opening import open_loader
from pipeline.loading.loader_state import config_fingerprint
from pipeline.loading.published_mixtures import (
    lacked_observations,
    mixture_names,
    published_mixture,
)

# by mixture: number of datasets and sum of weights
SIZES = {
    "octo/bridge": (1, 1.0),
    "octo/rtx": (11, 19.37497585143),
    "octo/rtx_franka": (25, 41.57497585143),
    "octo/oxe_magic_soup": (25, 30.77497585143),
    "octo/oxe_flex_act_soup": (32, 39.77497585143),
    "openvla/bridge": (1, 1.0),
    "openvla/bridge_rt_1": (2, 2.0),
    "openvla/rtx": (10, 14.37497585143),
    "openvla/rtx_franka": (24, 36.57497585143),
    "openvla/oxe_magic_soup": (23, 29.57497585143),
    "openvla/oxe_magic_soup_plus": (27, 31.03497585143),
    "openvla/oxe_magic_soup_plus_minus": (25, 31.3341046294),
    "openvla/libero_mix": (4, 4.0),
}


def test_mixtures_have_the_published_numbers() -> None:
    found = {name: published_mixture(name) for name in mixture_names()}
    assert {n: (len(w), pytest.approx(sum(w.values()))) for n, w in found.items()} == SIZES
    soup = found["octo/oxe_magic_soup"]
    assert (soup["fractal20220817_data"], soup["kuka"], soup["bc_z"]) == (
        0.54087122203,
        0.8341046294,
        0.2,
    )
    assert found["octo/rtx_franka"]["taco_play"] == 2.0  # listed twice: the first one counts
    plus = found["openvla/oxe_magic_soup_plus"]
    assert list(plus.items())[-4:] == [
        ("bc_z", 0.2),
        ("fmb_dataset", 1.0),
        ("dobbe", 0.2),
        ("droid", 0.06),
    ]
    assert "bridge_dataset" not in plus


def test_a_part_of_a_name_is_enough_where_one_project_has_it() -> None:
    assert published_mixture("bridge_rt_1") == published_mixture("openvla/bridge_rt_1")


@pytest.mark.parametrize(
    ("name", "leave_out", "message"),
    [
        (
            "oxe_magic_soup",
            (),
            "expected one of octo/oxe_magic_soup, openvla/oxe_magic_soup; found oxe_magic_soup",
        ),
        ("octo/magic_soup", (), r"found octo/magic_soup\. Did you mean octo/oxe_magic_soup\?"),
        (
            "openvla/bridge",
            ("kuka",),
            "expected datasets of openvla/bridge: bridge_orig; found kuka",
        ),
    ],
)
def test_a_name_that_no_or_two_mixtures_have_is_refused(
    name: str, leave_out: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        published_mixture(name, leave_out)


def test_cameras_that_a_dataset_lacks_are_those_that_its_mapping_lacks() -> None:
    from converters.mapping.mapping_registry import find_registered

    names = {dataset for name in mixture_names() for dataset in published_mixture(name)}
    assert len(names) == 45
    for name in names:
        mapping = find_registered(name, "RLDS")
        if mapping is None:
            assert name.startswith("libero_")  # which have a built-in mapping, with both cameras
            assert lacked_observations(name) == set()
            continue
        keys = {feature.key for feature in mapping.features}
        cameras = {"image_primary", "image_wrist"}
        lacks = {camera for camera in cameras if f"observation/{camera}" not in keys}
        assert lacked_observations(name) == lacks, name


def test_a_config_takes_a_mixture_by_its_name(tmp_path: pathlib.Path) -> None:
    config = DataConfig.from_mixture("octo/oxe_magic_soup", tmp_path, "v", leave_out=("kuka",))
    assert len(config.datasets) == 24
    assert config.balance
    assert config.observations == ("image_primary", "image_wrist")
    by_name = {pathlib.Path(part.path).name: part for part in config.datasets}
    assert by_name["bc_z"].weight == 0.2
    assert by_name["bc_z"].missing == ("image_wrist",)
    assert by_name["viola"].missing == ()
    assert by_name["viola"].path == f"{tmp_path}/viola"
    # Nobody in it has a wrist camera.
    assert DataConfig.from_mixture("octo/bridge", "data/", "").observations == ("image_primary",)
    chosen = DataConfig.from_mixture("libero_mix", "d", "", observations=("proprio",))
    assert {(part.path, part.missing) for part in chosen.datasets} == {
        (f"d/libero_{suite}_no_noops", ()) for suite in ("spatial", "object", "goal", "10")
    }


def test_sets_that_are_missing_are_listed_on_one_line(
    mini_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "libero_goal_no_noops").symlink_to(mini_dataset)
    config = DataConfig.from_mixture("libero_mix", tmp_path, "")
    with pytest.raises(UserError) as error:
        open_loader(config, 2)
    spatial, three, ten = (f"{tmp_path}/libero_{s}_no_noops" for s in ("spatial", "object", "10"))
    assert str(error.value).splitlines() == [
        "data.datasets: expected 4 dataset directories; found 1, without "
        f"{spatial}, {three}, {ten}. Get them with:",
        f"      octograin convert SRC/libero_spatial_no_noops {spatial}",
        f"      octograin convert SRC/libero_object_no_noops {three}",
        f"      octograin convert SRC/libero_10_no_noops {ten}",
    ]


def test_weights_count_for_each_step(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    names = list(published_mixture("octo/rtx"))
    for name in ("kuka", "taco_play"):
        (tmp_path / name).symlink_to(mini_dataset)
    out = [name for name in names if name not in ("kuka", "taco_play")]
    config = DataConfig.from_mixture("octo/rtx", tmp_path, "", leave_out=out)
    kuka, taco = config.datasets
    config = dataclasses.replace(
        config, datasets=(dataclasses.replace(kuka, episodes=(0, 1)), taco)
    )
    lengths = open_dataset(str(mini_dataset)).manifest.episode_lengths
    with open_loader(config, 2) as loader:
        first, second = loader.shares
    weights = 0.8341046294 * lengths[0], 2.0 * sum(lengths)
    # Datasets take turns by shares that are rounded to a millionth.
    assert first == pytest.approx(weights[0] / sum(weights), abs=1e-6)
    assert first + second == pytest.approx(1)


def test_a_config_has_the_same_identity_whatever_may_differ() -> None:
    config = DataConfig.from_mixture("octo/rtx", "data", "")
    strict = dataclasses.replace(config, may_differ=())
    assert config_fingerprint(config, 2) == config_fingerprint(strict, 2)
