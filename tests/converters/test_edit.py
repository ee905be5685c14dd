"""A correction is checked, noted and sealed, or nothing is changed."""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath

from converters.edit_notes import Edit, edits, noted
from converters.job.column_job import ColumnJob
from converters.job.columns import claimed
from converters.job.convert import convert
from converters.verify import __main__ as verify
from converters.verify.verifier import Verifier
from pipeline.data.conventions import Conventions, Gripper
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Column, Feature
from pipeline.files import to_json_values
from tests.file_checksums import contents

GRIPPER = Conventions("upright", "none", 10.0, "kept", gripper_dim=1)
WIDTH = (Gripper(1, 0.08, 0.0, "continuous"),)
Run = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def source(toy: Any, tmp_path: pathlib.Path) -> Any:
    return toy.open(tmp_path / "source")


@pytest.fixture
def out(toy: Any, source: Any, tmp_path: pathlib.Path) -> pathlib.Path:
    """The toy, converted: four episodes of three steps of one task, actions of two dimensions."""
    mapping = dataclasses.replace(toy.mapping, conventions=GRIPPER)
    convert(source, tmp_path / "out", mapping)
    return tmp_path / "out"


def test_a_correction_is_sealed_and_noted(out: pathlib.Path, run: Run) -> None:
    before = contents(out)
    code, lines, _ = run(
        *(out, "--set", "conventions.gripper_open=0", "--set", "conventions.gripper_close=1"),
        *("--set", "conventions.image_orientation=flipped_vertically"),
        *("--set", "licences.steps=CC0", "--instruction", "lift the cup", 'lift "the" cup -> é'),
    )
    assert code == 0
    manifest = open_dataset(str(out)).manifest
    conventions = manifest.conventions
    assert (conventions.gripper_open, conventions.gripper_close) == (0.0, 1.0)
    assert conventions.image_orientation == "flipped_vertically"
    assert manifest.tasks == ('lift "the" cup -> é',)
    assert manifest.licences["steps"] == "CC0"
    made = [(edit.field, edit.before, edit.after) for edit in edits(manifest)]
    assert made == [
        ("conventions.gripper_open", 1.0, 0.0),
        ("conventions.gripper_close", 0.0, 1.0),
        ("conventions.image_orientation", "upright", "flipped_vertically"),
        ("licences.steps", "unknown", "CC0"),
        ("instruction", "lift the cup", 'lift "the" cup -> é'),
    ]
    day = manifest.provenance["edit_1"].partition(" ")[0]
    assert manifest.provenance["edit_1"] == f"{day} conventions.gripper_open: 1.0 -> 0.0"
    assert lines[0] == f"{out}: {day} conventions.gripper_open: 1.0 -> 0.0"
    changed = {name for name, data in contents(out).items() if data != before.get(name)}
    assert changed == {"dataset.json"}
    assert run(out, "--set", "conventions.gripper_dim=null")[0] == 0
    last = list(edits(load_manifest(epath.Path(out))))[-1]
    assert dataclasses.replace(last, day="") == Edit("", "conventions.gripper_dim", 1, None)


@pytest.mark.parametrize(
    "value", [True, None, -2.5, 1e20, 'say "a -> b"', [{"dim": 1}], {"a": [0]}]
)
def test_any_value_of_an_edit_is_read_back(out: pathlib.Path, value: Any) -> None:
    made = [Edit("2026-11-29", "conventions.x", value, 0), Edit("2026-11-30", "y[3,7-9]", 0, value)]
    manifest = noted(load_manifest(epath.Path(out)), made)
    assert list(edits(manifest)) == made
    by_hand = {f"edit_{n}": f"{edit}, so" for n, edit in enumerate(made, 1)}
    assert list(edits(dataclasses.replace(manifest, provenance=by_hand))) == []


def test_a_gripper_becomes_one_that_takes_any_width(out: pathlib.Path, run: Run) -> None:
    width = [{"dim": 1, "open": 0.08, "close": 0.0, "kind": "continuous"}]
    assert run(out, "--set", f"conventions.grippers={json.dumps(width)}")[0] == 0
    manifest = load_manifest(epath.Path(out))
    assert manifest.conventions.all_grippers == WIDTH
    made = [(edit.field, edit.before, edit.after) for edit in edits(manifest)]
    assert made == [("conventions.grippers", None, width), ("conventions.gripper_dim", 1, None)]
    # A single binary gripper has its own fields again.
    assert run(out, "--set", 'conventions.grippers=[{"dim": 1, "close": -1}]')[0] == 0
    manifest = load_manifest(epath.Path(out))
    assert manifest.conventions == dataclasses.replace(GRIPPER, gripper_close=-1.0)
    made = [(edit.field, edit.before, edit.after) for edit in edits(manifest)]
    assert made[2:] == [
        ("conventions.grippers", width, None),
        ("conventions.gripper_dim", None, 1),
        ("conventions.gripper_close", 0.0, -1.0),
    ]


REFUSED = {
    "both forms": (
        [
            *("--set", 'conventions.grippers=[{"dim": 0}, {"dim": 1}]'),
            *("--set", "conventions.gripper_dim=1"),
        ],
        "give either grippers or gripper_dim",
    ),
    "a value out of range": (
        ["--set", "conventions.gripper_dim=2"],
        r"gripper_dim: expected a",
    ),
    "the same command twice": (["--set", "conventions.gripper_open=0"], "two commands must differ"),
    "another type": (["--set", "conventions.control_frequency_hz=fast"], "control_frequency_hz: "),
    "no rate": (["--set", "conventions.control_frequency_hz=1e999"], "must be above 0 and finite"),
    "nested": (["--set", "conventions.rotation=" + "[" * 2000], "conventions.rotation|rotation: "),
    "no such value": (["--set", "conventions.rotation=matrix"], "rotation: Input should be"),
    "no such field": (
        ["--set", "conventions.griper_dim=0"],
        "Did you mean conventions.gri",
    ),
    "what the conversion did": (
        ["--set", "conventions.no_ops=kept"],
        "FIELD=VALUE, with a field",
    ),
    "no such column": (["--set", "licences.depth=MIT"], "FIELD=VALUE, with a field among"),
    "no value": (["--set", "conventions.gripper_dim"], "FIELD=VALUE; found no value"),
    "an empty licence": (["--set", "licences.steps= "], "FIELD=VALUE; found no value"),
    "the schema": (["--set", "schema_hash=0"], "Change anything else at the source"),
    "no such instruction": (["--instruction", "lift", "x"], "its 1 instructions; found 'lift'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_change_that_does_not_fit_changes_nothing(out: pathlib.Path, run: Run, kind: str) -> None:
    flags, message = REFUSED[kind]
    before = contents(out)
    code, lines, errors = run(out, *flags)
    assert (code, lines, len(errors)) == (2, [], 1)
    assert re.search(message, errors[0])
    assert contents(out) == before


def test_a_dataset_of_before_gets_checksums_once(out: pathlib.Path, run: Run) -> None:
    sealed = (out / "dataset.json").read_bytes()
    manifest = json.loads(sealed)
    del manifest["checksum"], manifest["statistics_checksum"]
    (out / "dataset.json").write_text(json.dumps(manifest))
    printed = f"{out}: checksums of dataset.json and statistics.json added"
    assert run(out)[:2] == (0, [printed])
    assert (out / "dataset.json").read_bytes() == sealed
    unchanged = f"{out}: unchanged; it has checksums and hashes of its actions"
    assert run(out) == (0, [unchanged], [])


def test_a_file_that_was_edited_by_hand_is_not_sealed(out: pathlib.Path, run: Run) -> None:
    for name in ("statistics.json", "dataset.json"):
        path = out / name
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"0", b"1", 1))
        spoiled = contents(out)
        code, _, errors = run(out)
        assert (code, len(errors)) == (2, 1)
        assert contents(out) == spoiled
        path.write_bytes(whole)


def test_instructions_wait_for_an_unfinished_column(out: pathlib.Path, run: Run) -> None:
    column = Column("t", "step", (Feature("t", "tensor", (1,), "float32", "float32", "steps/t"),))
    with contextlib.suppress(KeyError), claimed(epath.Path(out)) as manifest:
        ColumnJob(epath.Path(out), manifest, column, {}, frozenset()).begin(overwrite=False)
        raise KeyError
    code, _, errors = run(out, "--instruction", "lift the cup", "x")
    assert (code, "no unfinished column" in errors[0], "found t." in errors[0]) == (2, True, True)
    assert run(out, "--set", "conventions.gripper_open=2")[0] == 0


# --- what verify makes of it


def test_conventions_are_compared_with_the_mapping_as_edited(
    out: pathlib.Path, source: Any, run: Run, tmp_path: pathlib.Path, reseal: Any
) -> None:
    def findings(conventions: Conventions) -> str:
        directory = epath.Path(out)
        values = to_json_values(conventions)
        return Verifier(directory, load_manifest(directory), source, values).run().text()

    assert findings(GRIPPER) == ""
    printed = findings(dataclasses.replace(GRIPPER, gripper_dim=0, rotation="euler_xyz"))
    assert printed.splitlines() == [
        f"{out}/dataset.json, conventions.rotation: expected euler_xyz, as the mapping says; "
        "found none",
        f"{out}/dataset.json, conventions.gripper_dim: expected 0, as the mapping says; found 1",
    ]
    printed = findings(dataclasses.replace(GRIPPER, gripper_dim=None, grippers=WIDTH))
    assert printed.splitlines()[0] == (
        f"{out}/dataset.json, conventions.gripper_dim: expected None, as the mapping says; found 1"
    )
    assert "conventions.grippers: expected [{'dim': 1, 'open': 0.08" in printed
    run(out, "--set", "conventions.gripper_dim=0", "--instruction", "lift the cup", "lift it")
    run(out, "--set", "conventions.target_poses=true")
    assert findings(GRIPPER) == ""
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["conventions"]["gripper_dim"], manifest["tasks"] = 1, ["drop it"]
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    printed = findings(GRIPPER)
    assert "conventions.gripper_dim: expected 0, as it was edited to; found 1" in printed
    assert "expected 'lift it', as " in printed


def test_verify_takes_the_mapping_that_it_is_given(
    out: pathlib.Path, source: Any, run: Run, tmp_path: pathlib.Path
) -> None:
    code, lines, _ = run(source.directory, out, module=verify)
    assert code == 0
    assert "conventions: not compared; name the mapping with --mapping FILE" in lines
    mapping = tmp_path / "mapping.toml"
    text = (
        'task = "steps/language_instruction"\n[[features]]\nkey = "action"\n'
        'source = "steps/action"\n[conventions]\nimage_orientation = "upright"\n'
        'rotation = "none"\ncontrol_frequency_hz = 10\nno_ops = "kept"\ngripper_dim = {}\n'
    )
    mapping.write_text(text.format(1))
    code, lines, _ = run(source.directory, out, "--mapping", mapping, module=verify)
    assert (code, any("not compared" in line for line in lines)) == (0, False)
    mapping.write_text(text.format(0))
    code, _, errors = run(source.directory, out, "--mapping", mapping, module=verify)
    assert code == 2
    assert "conventions.gripper_dim: expected 0, as the mapping says; found 1" in errors[0]
