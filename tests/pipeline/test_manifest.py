import pathlib
from collections.abc import Callable

import pytest
from etils import epath

from pipeline.errors import DataError
from pipeline.manifest import load_manifest


def test_manifest_survives_its_text(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = load_manifest(epath.Path(mini_dataset))
    (tmp_path / "dataset.json").write_text(manifest.dumps())
    assert load_manifest(epath.Path(tmp_path)) == manifest


def test_directory_without_a_manifest_is_no_dataset(tmp_path: pathlib.Path) -> None:
    message = (
        "expected a dataset directory with a dataset.json; found {}. Convert .*converters.rlds"
    )
    with pytest.raises(DataError, match=message.format("none in it")):
        load_manifest(epath.Path(tmp_path))
    with pytest.raises(DataError, match=message.format("no such directory")):
        load_manifest(epath.Path(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a JSON object"),
        ("[]", "a JSON object"),
        ("{}", "format version 1; found version None"),
        ('{"format_version": 2}', "format version 1; found version 2. Read it with the release"),
        ('{"format_version": 1}', "a valid Manifest; found name: Field required; schema: Field"),
    ],
)
def test_other_content_is_refused(tmp_path: pathlib.Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=f"dataset.json: expected {message}"):
        load_manifest(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "extra: Unexpected keyword argument"),
        ({"episode_lengths": [1.5]}, r"episode_lengths.0: Input should be a valid integer"),
        ({"episode_lengths": [102, 124]}, "column episodes: expected 2 records, one a episode"),
        ({"episode_lengths": [1, 1, 1, 1]}, "column steps: expected 4 records, .*found 455"),
        ({"shards": {}}, "column episodes: expected 4 records, .*found 0"),
        ({"conventions": {}}, "conventions.image_orientation: Field required"),
        ({"tasks": None, "name": 3}, "name: .*valid string; tasks: .*valid array"),
    ],
)
def test_wrong_fields_are_named_all_together(
    copied: pathlib.Path, edit_json: Callable, change: dict, message: str
) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest.update(change))
    with pytest.raises(DataError, match=f"dataset.json.*{message}.*Convert the dataset again"):
        load_manifest(epath.Path(copied))


def test_digest_is_the_identity_of_the_data(copied: pathlib.Path, edit_json: Callable) -> None:
    def damage(content: dict) -> None:
        content["shards"]["steps"][1]["digest"] = "0" * 32

    before = load_manifest(epath.Path(copied)).digest()
    edit_json(copied / "dataset.json", lambda content: content["provenance"].clear())
    assert load_manifest(epath.Path(copied)).digest() == before
    edit_json(copied / "dataset.json", damage)
    assert load_manifest(epath.Path(copied)).digest() != before


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["episode_tasks"].pop(),
        lambda manifest: manifest["tasks"].clear(),
        lambda manifest: manifest["episode_tasks"].__setitem__(0, -1),
    ],
)
def test_an_episode_without_a_task_is_refused(copied, edit_json, change) -> None:
    edit_json(copied / "dataset.json", change)
    with pytest.raises(DataError, match="episodes of at least one step, each with one of the tas"):
        load_manifest(epath.Path(copied))


def test_the_digest_of_some_columns_does_not_know_the_others(copied, edit_json) -> None:
    before = load_manifest(epath.Path(copied))

    def drop(manifest: dict) -> None:
        del manifest["schema"]["columns"][2], manifest["shards"]["vggt_tokens"]

    edit_json(copied / "dataset.json", drop)
    after = load_manifest(epath.Path(copied))
    assert after.digest({"episodes", "steps"}) == before.digest({"episodes", "steps"})
    assert after.digest() != before.digest()
