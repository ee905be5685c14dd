"""Mappings that compute: in TOML and in Python, over a source in memory and over RLDS files."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

from converters.job.convert import convert
from converters.job.shard_conversion import ShardJob
from converters.mapping.computed_source import compute_source
from converters.mapping.episode_selection import EpisodeCondition, StepSelection, parse_ranges
from converters.mapping.instruction_from import InstructionFrom
from converters.mapping.mapped_features import FeatureMapping, Part
from converters.mapping.mapping_registry import read_mapping
from converters.mapping.mapping_table import mapping_table
from converters.mapping.standardize import SourceMapping, standardize
from converters.operations.array_operations import Clip, Invert, Scale
from converters.operations.rotation_operations import ConvertRotation
from converters.operations.text_operations import CodePoints, EpisodeText, Substitute
from converters.operations.time_operations import Difference
from converters.verify.__main__ import open_converted
from converters.verify.verifier import Verifier
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.files import to_json_values
from tests.converters.conftest import FEATURES, Toy, episode
from tests.converters.memory_source import MemorySource

CONVENTIONS = Conventions("upright", "none", control_frequency_hz=10.0, no_ops="kept")
TOML = """
task = ""
ignore = ["id", "steps/is_*", "steps/observation/*"]

[conventions]
image_orientation = "upright"
rotation = "none"
control_frequency_hz = 5.0
no_ops = "kept"

[instruction_from]
keys = ["steps/language", "steps/language_2"]
default = "nothing"

[[features]]
key = "action"
from = [
    { source = "steps/state", columns = "0:2", compute = [{ op = "difference", steps = 2 }] },
    { source = "steps/grip", compute = [{ op = "clip", low = 0, high = 1 }, { op = "invert" }] },
    { constant = 1, width = 2 },
]
compute = [{ op = "scale", by = [1, 1, 10, 1, 1] }]
dims = ["dx", "dy", "gripper", "one", "two"]

[[features]]
key = "observation/proprio"
source = "steps/state"

[[features]]
key = "observation/last"
source = "steps/state"
compute = [{ op = "columns", columns = "-1" }]

[steps]
every = 2
resample_from_hz = 10

[[episodes]]
key = "success"
equals = true
"""


def source(**changes: np.ndarray | list[bytes]) -> MemorySource:
    values: dict[str, np.ndarray | list[bytes]] = {
        "steps/state": np.arange(21, dtype=np.float32).reshape(7, 3) ** 2,
        "steps/grip": np.array([0, 0.25, 2, 1, 0, 0, 0], np.float32),
        "steps/is_first": np.array([True, *[False] * 6]),
        "steps/is_last": np.array([*[False] * 6, True]),
        "steps/is_terminal": np.array([*[False] * 6, True]),
        "steps/language": [b"", b"lift", b" ", b"lift", b"", b"", b""],
        "steps/language_2": [b"raise"] * 4 + [b""] * 3,
        "steps/observation/image": [bytes([t]) for t in range(7)],
        "success": np.array([True]),
        "id": [b"demo_1"],
    }
    return MemorySource(({**values, **changes},), {"steps/observation/image": (8, 8, 3)})


def mapping(*features: FeatureMapping, **fields: object) -> SourceMapping:
    return SourceMapping(features, CONVENTIONS, **({"task": "", "ignore": ("*",)} | fields))  # pyright: ignore[reportArgumentType]


TO_ANGLES = ConvertRotation("quaternion_xyzw", "euler_xyz")
STATE = FeatureMapping("observation/state", "steps/state")


def first(held: MemorySource, of: SourceMapping) -> dict[str, Any]:
    """Values by feature key, and the instructions under `tasks`, of the first episode kept."""
    computed, plain = compute_source(held, of)
    plain = plain.fitted(computed)
    schema = plain.schema(computed)
    taken = {part.source for _, f in schema.features() for part in f.origins}
    wanted = taken | ({plain.task_key} - {""})
    for read in computed.episodes(computed.shards[0], wanted):
        if isinstance(read.values, UserError):
            raise read.values
        made = standardize(read.values, schema, plain, read.where)
        return {**made.values, "tasks": list(made.tasks)}
    return {}


def test_a_mapping_in_toml_computes(tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    path.write_text(
        TOML.replace("resample_from_hz = 10\n", "").replace(
            'ignore = ["', 'ignore = ["id", "steps/is_*", "'
        )
    )
    made = first(source(), read_mapping(path))
    state = np.asarray(source().held[0]["steps/state"])
    # Steps 0, 2 and 4; the last two have no state two steps later.
    np.testing.assert_array_equal(made["observation/proprio"], state[[0, 2, 4]])
    np.testing.assert_array_equal(made["observation/last"], state[[0, 2, 4], 2:])
    np.testing.assert_array_equal(made["action"][:, :2], (state[2:] - state[:-2])[::2, :2])
    np.testing.assert_array_equal(made["action"][:, 2:], [[10, 1, 1], [0, 1, 1], [10, 1, 1]])
    assert made["tasks"] == ["raise", "raise", "nothing"]


def test_a_mapping_keeps_its_text_without_new_fields(tmp_path: Path) -> None:
    plain = mapping(STATE, FeatureMapping("x", joined=("steps/state", "steps/grip")))
    assert not plain.is_computed
    known = {"key", "source", "column", "dims", "optional"}
    values = to_json_values(plain)
    assert set(values["features"][0]) == known
    assert values["features"][1]["joined"] == ["steps/state", "steps/grip"]
    assert not {"steps", "episodes", "instruction_from", "names"} & set(values)
    held = source()
    assert compute_source(held, plain) == (held, plain)


def test_marks_move_to_the_steps_that_are_kept() -> None:
    marks = tuple(FeatureMapping(n, f"steps/{n}") for n in ("is_first", "is_last", "is_terminal"))
    of = mapping(*marks, steps=StepSelection(drop_first=1, drop_last=2))
    made = first(source(), of)
    assert made["is_first"].tolist() == [True, False, False, False]
    assert made["is_last"].tolist() == [False, False, False, True]
    assert made["is_terminal"].tolist() == [False, False, False, True]
    cut = first(source(**{"steps/is_terminal": np.zeros(7, bool)}), of)
    assert not cut["is_terminal"].any()


def test_a_record_of_several_episodes_is_refused_before_its_steps_are_marked_afresh() -> None:
    marks = FeatureMapping("is_first", "steps/is_first")
    of = mapping(marks, STATE, steps=StepSelection(drop_first=1))
    several = source(**{"steps/is_first": np.array([True, *[False] * 4, True, False])})
    with pytest.raises(SchemaError, match=r"one whole episode in a record.*found is_first at step"):
        first(several, of)
    # Flags that the mapping ignores mean nothing.
    assert first(several, mapping(STATE, steps=StepSelection(drop_first=1)))


def test_the_number_of_steps_is_known_without_values_of_steps() -> None:
    """Keys that cannot be read and images are left alone for it."""
    held = source()
    texts = {key: held.held[0][key] for key in ("id", "success")}
    images = {"steps/a": [b"0"] * 7, "steps/z": np.zeros(7)}
    held = dataclasses.replace(held, held=({**texts, **images},), images={"steps/a": (8, 8, 3)})
    computed, _ = compute_source(
        held, mapping(episodes=(EpisodeCondition("success", equals=True),))
    )
    asked: list[set[str]] = []
    read = MemorySource.episodes

    def noted(self: MemorySource, shard: Any, wanted: Any = None) -> Any:
        asked.append(set(wanted))
        return read(self, shard, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemorySource, "episodes", noted)
        (kept,) = computed.episodes(computed.shards[0], {"id"})
    assert kept.values == {"id": [b"demo_1"]}
    assert asked == [{"id", "success", "steps/z"}]


@pytest.mark.parametrize(
    ("steps", "ahead", "kept"),
    [
        (StepSelection(), 0, range(7)),
        (StepSelection(drop_first=2, drop_last=1), 0, range(2, 6)),
        (StepSelection(drop_last=1), 1, range(6)),
        (StepSelection(every=3), 3, [0, 3]),
        (StepSelection(every=3), 0, [0, 3, 6]),
        (StepSelection(resample_from_hz=15), 0, [0, 2, 3, 5, 6]),
        (StepSelection(resample_from_hz=20), 0, [0, 2, 4, 6]),
        (StepSelection(drop_first=9), 0, []),
    ],
)
def test_steps_are_selected(steps: StepSelection, ahead: int, kept) -> None:
    assert steps.kept(7, ahead, 10.0, None).tolist() == list(kept)


def test_ranges_of_steps_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps({"a--demo_1": [[0, 2], [5, 20]]}))
    steps = StepSelection(ranges_file=str(path), ranges_id="a--{id}")
    made = first(source(), mapping(STATE, steps=steps))
    np.testing.assert_array_equal(
        made["observation/state"], np.asarray(source().held[0]["steps/state"])[[0, 1, 5, 6]]
    )
    assert first(source(id=[b"demo_2"]), mapping(STATE, steps=steps)) == {}
    computed, _ = compute_source(source(), mapping(STATE, steps=steps))
    assert computed.notes["step_ranges"].startswith(str(path))
    path.write_text('{"a": [[3, 1]]}')
    with pytest.raises(UserError, match=r"a list of \[start, stop\] for 'a'"):
        compute_source(source(), mapping(STATE, steps=steps))
    with pytest.raises(ValueError, match="an object of lists"):
        parse_ranges("[]")


@pytest.mark.parametrize(
    ("condition", "is_kept"),
    [
        (EpisodeCondition("success", equals=True), True),
        (EpisodeCondition("success", equals=False), False),
        (EpisodeCondition("success", equals=True, keep=False), False),
        (EpisodeCondition("id", matches=r"^demo_\d$"), True),
        (EpisodeCondition("id", matches="fail", keep=False), True),
        (EpisodeCondition("id", matches="fail"), False),
        (EpisodeCondition("steps/grip", equals=2.0, at="any"), True),
        (EpisodeCondition("steps/grip", equals=0.0, at="all"), False),
        (EpisodeCondition("steps/grip", equals=0.0, at="first"), True),
        (EpisodeCondition("steps/grip", equals=1.0), False),
    ],
)
def test_episodes_are_kept_by_conditions(condition: EpisodeCondition, is_kept: bool) -> None:  # noqa: FBT001
    assert bool(first(source(), mapping(STATE, episodes=(condition,)))) == is_kept


def test_instructions_are_computed() -> None:
    codes = np.array([[104, 105, 0]] * 7, np.int32)
    of = mapping(STATE, instruction_from=InstructionFrom(("steps/codes",), (CodePoints(),)))
    assert first(source(**{"steps/codes": codes}), of)["tasks"] == ["hi"] * 7
    named = InstructionFrom(("id",), (Substitute("_", " "),))
    assert first(source(), mapping(STATE, instruction_from=named))["tasks"] == ["demo 1"] * 7


def test_one_instruction_stands_in_place_of_those_of_the_source() -> None:
    texts = InstructionFrom(("steps/language", "steps/language_2"))
    rest = ("id", "success", "steps/is_*", "steps/grip", "steps/observation/*")
    for of in (
        mapping(STATE, task="steps/language", ignore=(*rest, "steps/language_2")),
        mapping(STATE, instruction_from=texts, ignore=rest),
    ):
        assert first(source(), of.with_instruction("go"))["tasks"] == ["go"] * 7


def test_a_second_instruction_is_kept_as_a_text_of_the_episode() -> None:
    kept = FeatureMapping("other", "steps/language_2", compute=(EpisodeText(),))
    texts = {"steps/language_2": [b"raise"] * 7}
    of = mapping(STATE, kept, steps=StepSelection(drop_first=3))
    made = first(source(**texts), of)
    assert [bytes(text) for text in made["other"]] == [b"raise"]
    assert len(made["observation/state"]) == 4
    with pytest.raises(SchemaError, match="several texts: b'raise' at step 0 and b'' at step 4"):
        first(source(), of)


def test_errors_name_feature_operation_episode_and_step() -> None:
    feature = FeatureMapping(
        "action",
        joined=(Part("steps/state", "0:1"), Part("steps/grip", compute=(TO_ANGLES,))),
    )
    with pytest.raises(
        SchemaError,
        match="action: steps/grip: operation convert_rotation: it takes columns of a tensor",
    ):
        compute_source(source(), mapping(feature))
    turned = FeatureMapping("action", "steps/quat", compute=(TO_ANGLES,))
    quat = np.ones((7, 4), np.float32)
    quat[5] = 0
    with pytest.raises(
        SchemaError,
        match=r"memory, episode 0: .* feature action, operation convert_rotation, "
        "step 5: quaternion_xyzw of norm 0",
    ):
        first(source(**{"steps/quat": quat}), mapping(turned))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (mapping(FeatureMapping("x", "steps/grip", compute=(Difference(angles="0"),))), "tensor"),
        (mapping(STATE, episodes=(EpisodeCondition("nope", matches="a"),)), "no key nope"),
        (mapping(STATE, episodes=(EpisodeCondition("id", equals=1),)), "equals needs a tensor"),
        (mapping(STATE, instruction_from=InstructionFrom(("success",))), "is a text, not bool"),
        (
            mapping(FeatureMapping("x", joined=(Part("id"), Part("steps/grip")))),
            "a part is a number or a vector, not a text",
        ),
        (mapping(FeatureMapping("x", "id", compute=(Invert(),))), "not a text"),
    ],
)
def test_a_mapping_is_checked_against_the_source(of: SourceMapping, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        compute_source(source(), of)


def test_missing_and_unmapped_keys_are_reported_together() -> None:
    feature = FeatureMapping("action", joined=(Part("steps/state", "0:2"), Part("steps/gripp")))
    computed, plain = compute_source(source(), mapping(feature, ignore=("id", "s*/[il]*", "suc*")))
    with pytest.raises(SchemaError, match=r"unmapped: .*steps/grip.* missing: steps/gripp"):
        plain.schema(computed)
    optional = dataclasses.replace(
        feature, key="observation/tokens", column="tokens", optional=True
    )
    licences = {"tokens": "MIT", "episodes": "CC0-1.0"}
    with_licences = mapping(STATE, optional, column_licences=licences)
    computed, plain = compute_source(source(), with_licences)
    assert plain.features == (STATE,)
    assert plain.column_licences == {"episodes": "CC0-1.0"}


def test_dims_are_those_of_the_result() -> None:
    wrong = FeatureMapping("x", joined=(Part("steps/state", "0:2"),), dims=("a", "b", "c"))
    computed, plain = compute_source(source(), mapping(wrong))
    with pytest.raises(SchemaError, match="3 values on the last axis, as dims of x says"):
        plain.schema(computed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Part, "either a source or a constant"),
        (lambda: Part("a", constant=1.0), "either a source or a constant"),
        (lambda: Part(constant=1.0, columns="1"), "and nothing else"),
        (lambda: Part("a", width=2), "only a constant has one"),
        (lambda: StepSelection(every=0), "at least 1"),
        (lambda: StepSelection(every=2, resample_from_hz=30), "give one of them"),
        (lambda: StepSelection(ranges_file="a.json", ranges_id="b"), "a key in braces"),
        (lambda: EpisodeCondition("a"), "either equals or matches"),
        (lambda: EpisodeCondition("a", matches="("), "matches"),
        (lambda: InstructionFrom(()), "names no key"),
        (lambda: InstructionFrom(("a",), (Difference(),)), "makes no text"),
        (
            lambda: mapping(STATE, instruction="a", instruction_from=InstructionFrom(("b",))),
            "place",
        ),
        (lambda: mapping(STATE, steps=StepSelection(resample_from_hz=5)), "must be finite and abo"),
        (lambda: mapping(STATE, steps=StepSelection(resample_from_hz=math.nan)), "hz nan must be"),
        (lambda: mapping(STATE, steps=StepSelection(resample_from_hz=math.inf)), "hz inf must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mapping_is_shown_as_a_table(tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    path.write_text(
        TOML.replace("every = 2\n", "").replace('ignore = ["', 'ignore = ["id", "steps/is_*", "')
    )
    assert mapping_table(source(), read_mapping(path)) == (
        "action               float32[5]  (steps/state[0:2] > difference(steps=2) + steps/grip > "
        "clip(low=0.0, high=1.0) > invert + 1 x 2) > scale(by=(1.0, 1.0, 10.0, 1.0, 1.0))\n"
        "observation/proprio  float32[3]  steps/state\n"
        "observation/last     float32[1]  steps/state > columns(columns='-1')\n"
        "instruction          text        steps/language or steps/language_2 or 'nothing'\n"
        "steps                            without the last 2 steps, 10 Hz to 5 Hz\n"
        "episodes                         kept where success equals True\n"
        "left out                         id, steps/is_first, steps/is_last, steps/is_terminal, "
        "steps/observation/image\n"
    )


def test_a_feature_that_the_source_lacks_drops_no_steps() -> None:
    ahead = FeatureMapping("action", "steps/other", compute=(Difference(),), optional=True)
    assert "dropped" not in mapping_table(source(), mapping(STATE, ahead))


def test_episodes_that_are_left_out_count_as_done(tmp_path: Path) -> None:
    toy = Toy(FEATURES, tuple(episode(seed, 4) for seed in range(4)))
    short = dataclasses.replace(toy, episodes=(*toy.episodes[:3], episode(3, 2)))
    of = dataclasses.replace(toy.mapping, steps=StepSelection(drop_first=2))
    counted = 0

    def count(num_episodes: int, num_bytes: int) -> None:
        nonlocal counted
        counted += num_episodes

    manifest = convert(short.open(tmp_path), tmp_path / "dataset", of, on_progress=count)
    assert len(manifest.episode_lengths) == 3
    assert counted == 4


def test_a_computed_conversion_verifies_and_resumes(tmp_path: Path) -> None:
    toy = Toy(FEATURES, tuple(episode(seed, 4) for seed in range(2)))
    moved, clipped = (
        Part("steps/action", compute=(Difference(),)),
        Part("steps/action", "0", compute=(Clip(0, 1),)),
    )
    action = FeatureMapping("action", joined=(moved, clipped))
    of = dataclasses.replace(toy.mapping, features=(action, *toy.mapping.features[1:]))
    opened = toy.open(tmp_path)
    directory = epath.Path(tmp_path) / "dataset"
    manifest = convert(opened, directory, of)
    assert manifest.episode_lengths == (3, 3)
    assert manifest.mapping["features"][0]["key"] == "action"
    assert manifest == load_manifest(directory)
    given = np.asarray(toy.episodes[1]["steps/action"], np.float64)
    expected = np.concatenate([given[1:] - given[:-1], given[:-1, :1].clip(0, 1)], axis=1)
    stored = open_dataset(str(directory)).columns["episodes"].read(1)["action"]
    np.testing.assert_allclose(np.asarray(stored), expected, atol=1e-6)
    converted = open_converted(str(opened.directory), manifest)
    verifier = Verifier(directory, manifest, converted)
    assert verifier.run().count == 0
    assert verifier.expected is not None
    assert verifier.expected.not_converted == []
    # Read with another mapping, the source gives other values.
    other = dataclasses.replace(of, steps=StepSelection(drop_first=1))
    changed = Verifier(directory, manifest, compute_source(opened, other)[0])
    assert changed.run().count > 0


def test_a_mapping_that_keeps_nothing_is_reported(tmp_path: Path) -> None:
    toy = Toy(FEATURES, tuple(episode(seed, 4) for seed in range(2)))
    of = dataclasses.replace(toy.mapping, steps=StepSelection(drop_first=4))
    with pytest.raises(DataError, match=r"steps that the mapping keeps; found none of 2"):
        convert(toy.open(tmp_path), tmp_path / "dataset", of)


def test_the_plan_of_a_job_covers_what_is_computed(tmp_path: Path) -> None:
    toy = Toy(FEATURES, tuple(episode(seed, 4) for seed in range(2)))
    opened = toy.open(tmp_path)
    plans = set()
    for factor, about in ((1.0, ""), (2.0, ""), (2.0, "what changes no value")):
        action = FeatureMapping("action", "steps/action", compute=(Scale(factor),))
        features = (action, *toy.mapping.features[1:])
        of = dataclasses.replace(toy.mapping, features=features, about=about)
        computed, plain = compute_source(opened, of)
        schema = plain.schema(computed)
        destination = epath.Path(tmp_path)
        plans.add(ShardJob(computed, plain, schema, destination, computation=of).plan_digest)
    assert len(plans) == 2
