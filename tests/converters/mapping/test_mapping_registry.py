"""The mappings of published datasets: valid files, and the values that their authors' code gave."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping

import numpy as np
import pytest

from converters.mapping import mapping_registry
from converters.mapping.computed_source import compute_source
from converters.mapping.mapping_registry import (
    find_mapping,
    find_registered,
    read_mapping,
    registered,
    registered_names,
    registry_list,
)
from converters.mapping.standardize import SourceMapping, standardize
from pipeline.data.rotations import rotation_angle
from pipeline.errors import DataError, UserError
from tests.converters.memory_source import MemorySource

FOLDER = pathlib.Path(mapping_registry.__file__).parent / "registry"
QUATERNIONS = {"iamlab_cmu_pickup_insert_converted_externally_to_rlds", "cmu_playing_with_food"}
"""Sets whose actions hold quaternions, which become angles."""
NUM_OCTO, NUM_RECORDED = 58, 46
OPENVLA = {
    "bridge_orig": "bridge_orig",
    "bridge_oxe": "bridge",
    "droid_base_frame": "droid",
    "libero": "libero_openvla",
}
"""The mapping of each recorded file of OpenVLA."""


@pytest.mark.parametrize("name", registered_names())
def test_files_are_valid_and_state_their_sources(name: str) -> None:
    mapping = registered(name)
    assert mapping.about
    assert len(mapping.references) >= 3
    assert mapping.features[0].key == "action"
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    assert set(values) <= {field.name for field in dataclasses.fields(SourceMapping)}


def test_a_mapping_is_found_by_the_name_of_the_dataset() -> None:
    source = MemorySource(({"steps/a": np.zeros((1, 1))},), name="bridge_oxe", format="RLDS")
    assert find_mapping(source) is registered("bridge")
    assert find_registered("toto", "RLDS") is registered("toto") is read_mapping("toto")
    assert find_registered("no_such_set", "RLDS") is None
    # A folder of another format may have the same name.
    assert find_registered("toto", "LeRobot 3.0") is None
    assert find_registered("toto", "LIBERO HDF5") is registered("libero_hdf5")
    assert find_registered("libero_90", "RLDS") is registered("libero")
    assert find_registered("libero_openvla", "RLDS") is registered("libero_openvla")
    with pytest.raises(UserError, match="octograin convert --list"):
        find_mapping(dataclasses.replace(source, name="no_such_set"))
    with pytest.raises(DataError, match=r"no_such_set: expected a mapping in TOML"):
        read_mapping("no_such_set")


def test_the_list_has_a_line_for_each() -> None:
    lines = registry_list().splitlines()
    assert [line.split()[0] for line in lines] == registered_names()
    assert len(lines) >= NUM_OCTO
    assert "DROID" in registry_list()


def recorded_source(arrays: Mapping[str, np.ndarray]) -> MemorySource:
    """Episodes as the source held them, by its keys."""
    episodes: list[dict[str, np.ndarray | list[bytes]]] = [{}, {}]
    for key, values in arrays.items():
        place, *names = key.split(" > ")
        if place not in ("in0", "in1"):
            continue
        held = episodes[int(place[2])]
        if names[-1] == "bytes":
            stops = np.cumsum(arrays[f"{place} > {' > '.join(names[:-1])} > lengths"])
            packed = values.tobytes()
            pieces = zip([0, *stops[:-1]], stops, strict=True)
            held["/".join(["steps", *names[:-1]])] = [packed[a:b] for a, b in pieces]
        elif names[-1] != "lengths":
            is_text = values.dtype.kind == "U"
            texts = [str(text).encode() for text in values]
            held["/".join(["steps", *names])] = texts if is_text else values
    return MemorySource(tuple(episodes))


def mapped(source: MemorySource, mapping: SourceMapping) -> list[dict[str, np.ndarray | list[str]]]:
    """What the mapping makes of each episode: action, proprio and texts."""
    computed, plain = compute_source(source, mapping)
    plain = plain.fitted(computed)
    schema = plain.schema(computed)
    taken = {part.source for _, f in schema.features() for part in f.origins}
    made = []
    for episode in computed.episodes(computed.shards[0], taken | ({plain.task_key} - {""})):
        assert isinstance(episode.values, dict), episode.values
        standard = standardize(episode.values, schema, plain, episode.where)
        arrays = {k: v for k, v in standard.values.items() if isinstance(v, np.ndarray)}
        made.append({**arrays, "texts": list(standard.tasks)})
    return made


def expected(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray | list[str]]:
    """What was recorded of an episode, by feature key."""
    of = {k.split(" > ", 1)[1]: v for k, v in arrays.items() if k.startswith(f"out{number}")}
    found: dict[str, np.ndarray | list[str]] = {"action": of["action"]}
    if "observation > proprio" in of:
        found["observation/proprio"] = of["observation > proprio"]
    elif "observation > EEF_state" in of:
        parts = [of["observation > EEF_state"], of["observation > gripper_state"]]
        found["observation/proprio"] = np.concatenate(parts, axis=1)
    return found | {"texts": of["language_instruction"].tolist()}


def check_values(made: np.ndarray, recorded: np.ndarray, has_quaternions: bool) -> None:  # noqa: FBT001
    """Compares an action or proprio, angles from quaternions as rotations."""
    assert made.dtype == np.float32
    if has_quaternions:
        assert rotation_angle(made[:, 3:6], recorded[:, 3:6], "euler_xyz").max() < 1e-3
        made, recorded = (np.delete(values, range(3, 6), axis=1) for values in (made, recorded))
    np.testing.assert_allclose(made, recorded, rtol=0, atol=1e-6)


def check_recorded(name: str, path: pathlib.Path) -> None:
    arrays = dict(np.load(path))
    made = mapped(recorded_source(arrays), registered(name))
    assert len(made) == 2, name
    for number, episode in enumerate(made):
        recorded = expected(arrays, number)
        assert set(recorded) == set(episode), name
        assert recorded.pop("texts") == episode.pop("texts"), name
        for key, values in recorded.items():
            has_quaternions = key == "action" and name in QUATERNIONS
            check_values(np.asarray(episode[key]), np.asarray(values), has_quaternions)


def test_octos_recorded_standardisations(shared: pathlib.Path) -> None:
    paths = [p for p in (shared / "golden" / "oxe").glob("*.npz") if p.stem in registered_names()]
    assert len(paths) == NUM_RECORDED
    for path in paths:
        if path.stem != "robo_net":
            check_recorded(path.stem, path)


def test_robo_net_gives_what_octo_meant(shared: pathlib.Path) -> None:
    arrays = dict(np.load(shared / "golden" / "oxe" / "robo_net.npz"))
    for number, made in enumerate(mapped(recorded_source(arrays), registered("robo_net"))):
        for feature, key in (("action", "action"), ("observation/proprio", "observation > state")):
            given = arrays[f"in{number} > {key}"]
            meant = np.concatenate([given[:, :4], np.zeros((8, 2)), given[:, -1:]], axis=1)
            np.testing.assert_array_equal(made[feature], meant.astype(np.float32))


@pytest.mark.parametrize("recorded", OPENVLA)
def test_openvlas_recorded_standardisations(shared: pathlib.Path, recorded: str) -> None:
    check_recorded(OPENVLA[recorded], shared / "golden" / "oxe" / "openvla" / f"{recorded}.npz")
