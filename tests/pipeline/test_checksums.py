"""JSON files are those that were written, or one line says otherwise."""

import dataclasses
import json
import logging
import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath

from pipeline.checksums import from_json, read_json, write_json
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.errors import DataError, UserError
from pipeline.files import json_checksum

NUM_FLIPS = 50


@pytest.mark.parametrize("name", ["dataset.json", "statistics.json"])
def test_a_flipped_bit_is_refused_in_one_line_or_changes_no_value(
    copied: pathlib.Path, name: str
) -> None:
    path, chance = copied / name, random.Random(16)
    whole, values = path.read_bytes(), json.loads(path.read_text())
    refused = []
    for _ in range(NUM_FLIPS):
        spoiled = bytearray(whole)
        spoiled[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(spoiled)
        try:
            open_dataset(str(copied))
        except UserError as error:
            refused.append(str(error))
        else:
            assert json.loads(path.read_text()) == values
    assert len(refused) > NUM_FLIPS * 0.8
    for message in refused:
        assert "\n" not in message
        assert message.startswith(f"{path}: expected ")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("statistics.json", lambda s: s["action"].update(std=[10 * v for v in s["action"]["std"]])),
        ("dataset.json", lambda m: m["conventions"].update(gripper_dim=4)),
        ("dataset.json", lambda m: m["conventions"].update(gripper_open=-2.0)),
        ("dataset.json", lambda m: m["conventions"].update(image_orientation="upright")),
        ("dataset.json", lambda m: m["conventions"].update(control_frequency_hz=10.0)),
        ("dataset.json", lambda m: m["tasks"].reverse()),
        ("dataset.json", lambda m: m["licences"].update(steps="none")),
        ("dataset.json", lambda m: m.pop("checksum")),
        ("dataset.json", lambda m: m.pop("statistics_checksum")),
        ("dataset.json", lambda m: m.update(checksum="0" * 32)),
    ],
)
def test_an_edit_without_a_checksum_is_refused(
    copied: pathlib.Path, name: str, change: Callable[[dict], object]
) -> None:
    values = json.loads((copied / name).read_text())
    change(values)
    (copied / name).write_text(json.dumps(values))
    message = rf"{name}: expected content with the checksum .*; found .*: the file is corrupt"
    with pytest.raises(DataError, match=message):
        open_dataset(str(copied))


def test_statistics_of_another_dataset_are_refused(
    copied: pathlib.Path, edit_json: Callable
) -> None:
    whole = (copied / "statistics.json").read_bytes()
    edit_json(copied / "statistics.json", lambda s: s["action"].update(mean=[0.0] * 7))
    open_dataset(str(copied))
    (copied / "statistics.json").write_bytes(whole)
    with pytest.raises(DataError, match=r"statistics\.json: .* or is of another dataset"):
        open_dataset(str(copied))


def test_indentation_and_order_have_no_meaning(copied: pathlib.Path) -> None:
    for name in ("dataset.json", "statistics.json"):
        values = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert open_dataset(str(copied)).num_episodes == 4


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.update(other=s["action"]), "found other: no such feature"),
        (lambda s: s.update({"is_first": s["reward"]}), "found is_first: no such feature"),
        (lambda s: s.pop("reward"), "found reward: none"),
        (lambda s: s.update(action=s["reward"]), "found action: lists of 1, not 7"),
        (lambda s: s["action"]["std"].pop(), "found action: expected lists of one length"),
        (lambda s: s["action"].update(std=None), "found action: std: expected a list of numbers"),
        (lambda s: s.update(action=[]), "found action: expected mean, "),
    ],
)
def test_statistics_that_do_not_fit_the_features_are_refused(
    copied: pathlib.Path, edit_json: Callable, change: Callable[[dict], Any], found: str
) -> None:
    edit_json(copied / "statistics.json", change)
    with pytest.raises(DataError, match=rf"statistics\.json: expected statistics .*; {found}"):
        open_dataset(str(copied))


# --- what was written before there were checksums


def without_checksums(directory: pathlib.Path) -> None:
    manifest = json.loads((directory / "dataset.json").read_text())
    del manifest["checksum"], manifest["statistics_checksum"]
    (directory / "dataset.json").write_text(json.dumps(manifest))


def test_a_dataset_of_before_opens_with_one_line(
    copied: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = load_manifest(epath.Path(copied))
    without_checksums(copied)
    with caplog.at_level(logging.WARNING):
        opened = [open_dataset(str(copied)) for _ in range(3)]
    (line,) = caplog.messages
    assert line == (
        f"{copied}: dataset.json and statistics.json have no checksums, as it was written before "
        f"there were any; add them: octograin edit {copied}"
    )
    assert opened[0].manifest == dataclasses.replace(sealed, statistics_checksum="")
    assert "checksum" not in json.loads(opened[0].manifest.dumps())
    assert opened[0].manifest.digest() == sealed.digest()


def test_the_identity_of_the_bytes_is_that_of_before(mini_dataset: pathlib.Path) -> None:
    """May never change: checkpoints and half-finished column jobs of before hold it."""
    manifest = load_manifest(epath.Path(mini_dataset))
    assert manifest.data_digest() == "a5d1fd9cafd663bd"
    assert manifest.data_digest({"episodes", "steps"}) == "748d1caf39e22b05"
    assert manifest.digest() == "4d4ca4eb3bc1563c"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(gripper_dim=5),
        lambda c: c.update(gripper_open=0.5),
        lambda c: c.update(image_orientation="upright"),
        lambda c: c.update(control_frequency_hz=10.0),
    ],
)
def test_the_digest_covers_the_conventions(
    copied: pathlib.Path, edit_json: Callable, change: Callable[[dict], None]
) -> None:
    before = load_manifest(epath.Path(copied))
    edit_json(copied / "dataset.json", lambda manifest: change(manifest["conventions"]))
    after = load_manifest(epath.Path(copied))
    assert after.digest() != before.digest()
    assert after.data_digest() == before.data_digest()


def test_a_checkpoint_of_before_resumes(
    make_loader: Callable, copied: pathlib.Path, edit_json: Callable
) -> None:
    loader = make_loader(copied)
    state = loader.state(7)
    (part,) = state.mixture
    data = loader.datasets[0].manifest.data_digest({"episodes", "steps"})
    assert part.data != data
    old = dataclasses.replace(state, mixture=(dataclasses.replace(part, data=data),))
    assert loader.restore(old) == 7
    assert loader.state(8) == dataclasses.replace(state, position=8)  # of the new identity
    edit_json(copied / "dataset.json", lambda m: m["conventions"].update(gripper_open=-2.0))
    message = r"expected the mixture of this config; found .*settings"
    for kept in (old, state):
        with pytest.raises(DataError, match=message):
            make_loader(copied).restore(kept)


@pytest.mark.parametrize("values", [{"a": 1.5, "b": [None, "é"]}, {}, {"checksum": {"a": 1}}])
def test_json_is_read_as_it_was_written(tmp_path: pathlib.Path, values: dict[str, Any]) -> None:
    path = tmp_path / "a.json"
    write_json(path, values)
    assert read_json(path, remedy="") == values
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=4))
    assert read_json(path, remedy="") == values
    path.write_text(json.dumps(values))  # as an earlier release wrote it
    assert read_json(path, remedy="") == values


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1', "expected a JSON object; found JSONDecodeError: Exp"),
        ("[" * 100_000, "expected a JSON object; found values that are nested"),
        ("3", "expected a JSON object; found int"),
        ('{"a": 2, "checksum": "CHECKSUM"}', "expected content with the checksum .*; found "),
        ('{"a": 1, "checksun": "CHECKSUM"}', "expected the checksum as its last .*found checksun"),
    ],
)
def test_json_that_is_not_what_was_written_is_refused(text: str, found: str) -> None:
    text = text.replace("CHECKSUM", json_checksum({"a": 1}))
    with pytest.raises(DataError, match=rf"^a.json: {found}.*\. Delete it\.$"):
        from_json(text, where="a.json", remedy="Delete it.")
