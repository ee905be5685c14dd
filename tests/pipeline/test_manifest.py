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


def test_the_digest_of_some_columns_does_not_know_the_others(copied, edit_schema) -> None:
    before = load_manifest(epath.Path(copied))

    def drop(manifest: dict) -> None:
        del manifest["schema"]["columns"][2], manifest["shards"]["vggt_tokens"]

    edit_schema(copied, drop)
    after = load_manifest(epath.Path(copied))
    assert after.digest({"episodes", "steps"}) == before.digest({"episodes", "steps"})
    assert after.digest() != before.digest()


def test_a_schema_that_was_edited_is_refused(copied: pathlib.Path, edit_json: Callable) -> None:
    written = load_manifest(epath.Path(copied)).schema_hash

    def rename(manifest: dict) -> None:
        manifest["schema"]["columns"][0]["features"][0]["key"] = "other"

    edit_json(copied / "dataset.json", rename)
    message = (
        rf"dataset.json, schema: expected the hash {written} that was written with it; "
        r"found [0-9a-f]{16}: the schema was changed. Convert"
    )
    with pytest.raises(DataError, match=message):
        load_manifest(epath.Path(copied))


def test_a_schema_hash_that_was_edited_is_refused(copied, edit_json) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest.update(schema_hash="0" * 16))
    with pytest.raises(DataError, match="the hash 0000000000000000 that was written"):
        load_manifest(epath.Path(copied))


def change(episode: int, step: int, task: int) -> dict[str, int]:
    """An instruction that begins later than its episode, as JSON."""
    return {"episode": episode, "step": step, "task": task}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("episode_tasks", [0, 0, 0, 0]),
        ("task_changes", [change(0, 5, 1)]),
        ("task_changes", [change(0, 6, 1)]),
        ("task_changes", [change(1, 5, 1)]),
        ("task_changes", [change(0, 5, 0)]),
        ("tasks", ["one", "two"]),
    ],
)
def test_the_digest_covers_the_tasks_of_every_step(copied, edit_json, field, value) -> None:
    edit_json(copied / "dataset.json", lambda m: m.update(task_changes=[change(2, 7, 0)]))
    before = load_manifest(epath.Path(copied))
    edit_json(copied / "dataset.json", lambda manifest: manifest.update({field: value}))
    after = load_manifest(epath.Path(copied))
    assert after.digest() != before.digest()
    assert after.digest({"steps"}) != before.digest({"steps"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("licences", {}),
        ("removed_steps", [3, 4]),
        ("task_source", "steps/task"),
        ("provenance", {}),
        ("name", "other"),
    ],
)
def test_the_digest_does_not_cover_what_no_batch_holds(copied, edit_json, field, value) -> None:
    before = load_manifest(epath.Path(copied)).digest()
    edit_json(copied / "dataset.json", lambda manifest: manifest.update({field: value}))
    assert load_manifest(epath.Path(copied)).digest() == before


@pytest.mark.parametrize("task", [-1, 2, 99])
def test_a_change_to_a_task_that_is_not_there_is_refused(copied, edit_json, task: int) -> None:
    edit_json(copied / "dataset.json", lambda m: m.update(task_changes=[change(0, 5, task)]))
    with pytest.raises(DataError, match=r"each with one of the tasks; found 4 lengths, .* 2 tasks"):
        load_manifest(epath.Path(copied))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([change(4, 5, 1)], r"\(4, 5\)"),
        ([change(-1, 5, 1)], r"\(-1, 5\)"),
        ([change(0, 0, 1)], r"\(0, 0\)"),
        ([change(0, 102, 1)], r"\(0, 102\)"),
        ([change(0, 9, 1), change(0, 5, 0)], r"\(0, 9\), \(0, 5\)"),
        ([change(1, 5, 1), change(0, 5, 1)], r"\(1, 5\), \(0, 5\)"),
        ([change(0, 5, 1), change(0, 5, 0)], r"\(0, 5\), \(0, 5\)"),
    ],
)
def test_a_change_outside_its_episode_or_out_of_order_is_refused(
    copied, edit_json, changes, found
) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest.update(task_changes=changes))
    message = f"task_changes: expected steps inside their episodes, in their order; found .{found}"
    with pytest.raises(DataError, match=message):
        load_manifest(epath.Path(copied))
