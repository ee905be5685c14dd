import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable

import pytest
from etils import epath

from pipeline.data.manifest import Manifest, TaskChange, check_consistency, load_manifest
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import DataError
from pipeline.files import to_json_values
from pipeline.vggt.encoder_spec import EncoderSpec, tiny


def test_manifest_survives_its_text(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = load_manifest(epath.Path(mini_dataset))
    (tmp_path / "dataset.json").write_text(manifest.dumps())
    assert load_manifest(epath.Path(tmp_path)) == manifest


def test_directory_without_a_manifest_is_no_dataset(tmp_path: pathlib.Path) -> None:
    expected = "expected a dataset directory with a dataset.json; found"
    remedy = rf"If it is a source, convert it: octograin convert {tmp_path} DST"
    with pytest.raises(DataError, match=rf"{expected} none in it\. {remedy}"):
        load_manifest(epath.Path(tmp_path))
    remedy = rf"Convert a source: octograin convert SRC {tmp_path}/missing"
    with pytest.raises(DataError, match=rf"{expected} no such directory\. {remedy}"):
        load_manifest(epath.Path(tmp_path / "missing"))


def test_a_run_is_not_taken_for_a_dataset(tmp_path: pathlib.Path) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"found the directory of a run\. Its datasets\.json lists"):
        load_manifest(epath.Path(tmp_path))


def test_the_folder_of_a_dataset_is_reported_with_what_is_in_it(mini_dataset: pathlib.Path) -> None:
    with pytest.raises(DataError, match=rf"none in it\. Datasets in it: .*{mini_dataset}"):
        load_manifest(epath.Path(mini_dataset.parent))


def test_an_rlds_directory_is_called_one(mini_rlds: pathlib.Path) -> None:
    for directory in (mini_rlds, mini_rlds.parent):
        commands = rf"octograin convert {directory} DST; .*octograin verify {directory} DST"
        with pytest.raises(DataError, match=f"found an RLDS directory. Convert it: .*{commands}"):
            load_manifest(epath.Path(directory))


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
        ({"extra": 1}, "found unknown field extra[.]"),
        ({"episode_lengths": [1.5]}, r"episode_lengths \(1st\): Input should be a valid integer"),
        ({"episode_lengths": [102, 124]}, "column episodes: expected 2 records, one per episode"),
        ({"episode_lengths": [1, 1, 1, 1]}, "column steps: expected 4 records, .*found 455"),
        ({"shards": {}}, r"columns: expected episodes, and shards of each; .*, shards of \[\]"),
        (
            {"shards": {"episodes": [], "steps": [], "vggt_tokens": []}},
            "column episodes: expected 4 records, .*found 0",
        ),
        ({"conventions": {}}, "conventions.image_orientation: Field required"),
        ({"tasks": None, "name": 3}, "name: .*valid string.*; tasks: .*valid array"),
    ],
)
def test_wrong_fields_are_named_all_together(
    copied: pathlib.Path, edit_json: Callable, change: dict, message: str
) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest.update(change))
    with pytest.raises(DataError, match=f"dataset.json.*{message}.*Convert the dataset again"):
        load_manifest(epath.Path(copied))


def test_digest_is_the_identity_of_the_data(copied: pathlib.Path, edit_json: Callable) -> None:
    def corrupt(content: dict) -> None:
        content["shards"]["steps"][1]["digest"] = "0" * 32

    before = load_manifest(epath.Path(copied)).digest()
    edit_json(copied / "dataset.json", lambda content: content["provenance"].clear())
    assert load_manifest(epath.Path(copied)).digest() == before
    edit_json(copied / "dataset.json", corrupt)
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
        del manifest["schema"]["columns"][2]
        del manifest["shards"]["vggt_tokens"], manifest["licences"]["vggt_tokens"]

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
        ("licences", dict.fromkeys(("episodes", "steps", "vggt_tokens"), "unknown")),
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
    message = f"task_changes: expected steps inside their episodes, in order; found .{found}"
    with pytest.raises(DataError, match=message):
        load_manifest(epath.Path(copied))


def feature(manifest: dict, key: str) -> dict:
    """The declaration of a feature, to be changed in place."""
    features = [f for column in manifest["schema"]["columns"] for f in column["features"]]
    return next(f for f in features if f["key"] == key)


def rename_episodes(manifest: dict) -> None:
    manifest["schema"]["columns"][0]["name"] = "trajectories"
    for named in (manifest["shards"], manifest["licences"]):
        named["trajectories"] = named.pop("episodes")
    for shard in manifest["shards"]["trajectories"]:
        shard["file"] = shard["file"].replace("episodes", "trajectories")


def double_a_column(manifest: dict) -> None:
    manifest["schema"]["columns"].append({"name": "steps", "per": "step", "features": []})


def add_shards(manifest: dict) -> None:
    manifest["shards"]["depth"] = []


def name_column(name: str) -> Callable[[dict], None]:
    """Another name of the column of tokens, everywhere."""

    def change(manifest: dict) -> None:
        manifest["schema"]["columns"][2]["name"] = name
        for named in (manifest["shards"], manifest["licences"]):
            named[name] = named.pop("vggt_tokens")
        for shard in manifest["shards"][name]:
            shard["file"] = shard["file"].replace("vggt_tokens", name)

    return change


def name_file(file: str) -> Callable[[dict], None]:
    """Another file of the second shard of steps."""
    return lambda manifest: manifest["shards"]["steps"][1].update(file=file)


def count(column: str, *records: int) -> Callable[[dict], None]:
    """Other numbers of records of the shards of a column."""

    def change(manifest: dict) -> None:
        for shard, number in zip(manifest["shards"][column], records, strict=True):
            shard["records"] = number

    return change


def leave_one_shard(manifest: dict) -> None:
    manifest["shards"]["steps"].pop()
    manifest["shards"]["steps"][0]["records"] = 455


def add_another_column_of_episodes(manifest: dict) -> None:
    manifest["schema"]["columns"].append({"name": "more", "per": "episode", "features": []})
    manifest["licences"]["more"] = "unknown"
    shard = {"num_bytes": 131072, "digest": "0" * 32}
    manifest["shards"]["more"] = [
        {"file": "more/0", "records": 1} | shard,
        {"file": "more/1", "records": 3} | shard,
    ]


def declare(key: str, /, **fields: object) -> Callable[[dict], None]:
    """Other fields of a feature."""
    return lambda manifest: feature(manifest, key).update(fields)


def set_gripper(manifest: dict) -> None:
    manifest["conventions"]["gripper_dim"] = 7


def give_action_two_axes(manifest: dict) -> None:
    feature(manifest, "action").update(shape=[8, 2], dims=[])


def contradict_everywhere(manifest: dict) -> None:
    add_shards(manifest)
    del manifest["licences"]["steps"]
    declare("reward", key="discount")(manifest)
    declare("observation/vggt_tokens", shape=[0, 64])(manifest)
    declare("observation/proprio", dims=["x_m"])(manifest)
    set_gripper(manifest)
    manifest["episode_tasks"].pop()
    manifest["removed_steps"].pop()
    manifest["task_changes"].append(change(0, 0, 1))


def spoil_every_column(manifest: dict) -> None:
    count("episodes", 2, 1)(manifest)
    name_file("../x")(manifest)
    count("steps", 226, 228)(manifest)
    count("vggt_tokens", -1, 456)(manifest)


COLUMNS = "columns: expected episodes, and shards of each; found "
STEPS_FOLDER = "column steps: expected files in its folder; found ["
BORDERS = "expected the episodes' shards, of [226, 229] records; found "


def compute(manifest: dict, **fields: object) -> None:
    """Declares the token column as computed, of 16 patches and registers at 56 x 56 pixels."""
    declared = feature(manifest, "observation/vggt_tokens")
    declared |= {"source": "", "source_dtype": ""}
    spec = EncoderSpec("w", "d", "MIT", model=tiny(), layers=(1,), image_size=(56, 56))
    origin = TokenOrigin(spec, "image_primary", "all", "f16", 0.0)
    manifest["encoders"] = {"observation/vggt_tokens": to_json_values(origin) | fields}


def forget_the_encoder(manifest: dict) -> None:
    compute(manifest)
    manifest["encoders"] = {}


def name_the_encoder_of_a_source(manifest: dict) -> None:
    compute(manifest)
    feature(manifest, "observation/vggt_tokens")["source"] = "steps/x"


def compute_other_tokens(manifest: dict) -> None:
    compute(manifest, store="bf16")


def project_from_elsewhere(manifest: dict) -> None:
    compute(manifest, keep="project:64", projection="steps/p.npy")
    manifest["encoders"]["observation/vggt_tokens"]["encoder"]["kept"] = "patches"
    feature(manifest, "observation/vggt_tokens")["shape"] = [16, 64]


CONTRADICTIONS = {
    "no column of episodes": (
        rename_episodes,
        [
            COLUMNS + "['trajectories', 'steps', 'vggt_tokens'], "
            "shards of ['steps', 'trajectories', 'vggt_tokens']"
        ],
    ),
    "a column twice": (
        double_a_column,
        [
            COLUMNS + "['episodes', 'steps', 'vggt_tokens', 'steps'], "
            "shards of ['episodes', 'steps', 'vggt_tokens']"
        ],
    ),
    "shards of no column": (
        add_shards,
        [
            COLUMNS + "['episodes', 'steps', 'vggt_tokens'], "
            "shards of ['depth', 'episodes', 'steps', 'vggt_tokens']"
        ],
    ),
    "a column without shards": (
        lambda manifest: manifest["shards"].pop("steps"),
        [COLUMNS + "['episodes', 'steps', 'vggt_tokens'], shards of ['episodes', 'vggt_tokens']"],
    ),
    **{
        f"the file {file!r}": (name_file(file), [f"{STEPS_FOLDER}{file!r}]"])
        for file in (
            *("../x", "other/0", "/etc/passwd", "steps/../x", "steps/more/0", "./steps/0"),
            *("steps/", "steps", "", "steps/.x", "steps/0\n", "stepsx/0"),
        )
    },
    **{
        f"the column {name!r}": (
            name_column(name),
            [f"column {name}: expected files in its folder; found ['{name}/00000-of-00002"],
        )
        for name in ("..", "/tmp", "a/b", ".hidden")
    },
    "an absolute column": (name_column(""), ["column : expected files in its folder; found ['/0"]),
    "negative counts of steps": (
        count("steps", -1, 456),
        ["column steps: expected 455 records, one per step; found 455 in shards of [-1, 456]"],
    ),
    "negative counts of episodes": (
        count("episodes", 5, -1),
        [
            "column episodes: expected 4 records, one per episode; found 4 in shards of [5, -1]",
            *(
                f"column {name}: expected the episodes' shards, of [455, 0] records; "
                "found [226, 229]"
                for name in ("steps", "vggt_tokens")
            ),
        ],
    ),
    "one record less": (
        count("vggt_tokens", 226, 228),
        [
            "column vggt_tokens: expected 455 records, one per step; found 454 in shards of "
            "[226, 228]"
        ],
    ),
    "other borders": (count("steps", 227, 228), [f"column steps: {BORDERS}[227, 228]"]),
    "fewer shards": (leave_one_shard, [f"column steps: {BORDERS}[455]"]),
    "other borders of episodes": (
        count("episodes", 1, 3),
        [
            f"column {name}: expected the episodes' shards, of [102, 353] records; found [226, 229]"
            for name in ("steps", "vggt_tokens")
        ],
    ),
    "borders of another column of episodes": (
        add_another_column_of_episodes,
        ["column more: expected the episodes' shards, of [2, 2] records; found [1, 3]"],
    ),
    "a key twice": (
        declare("reward", key="discount"),
        ["feature discount: expected once; found 2 times"],
    ),
    "a key in two columns": (
        declare("observation/image_wrist", key="reward"),
        ["feature reward: expected once; found 2 times"],
    ),
    "a size of 0": (
        declare("observation/vggt_tokens", shape=[0, 64]),
        ["feature observation/vggt_tokens: expected sizes above 0; found [0, 64]"],
    ),
    "a negative size": (
        declare("observation/image_primary", shape=[128, -1, 3]),
        ["feature observation/image_primary: expected sizes above 0; found [128, -1, 3]"],
    ),
    "fewer dims": (
        declare("observation/proprio", dims=["x_m", "y_m"]),
        ["feature observation/proprio: expected dims of its last axis; found 2 names for [8]"],
    ),
    "dims of the first axis": (
        declare("observation/vggt_tokens", dims=["token"] * 21),
        [
            "feature observation/vggt_tokens: expected dims of its last axis; "
            "found 21 names for [21, 64]"
        ],
    ),
    "dims of a scalar": (
        declare("reward", dims=["reward"]),
        ["feature reward: expected dims of its last axis; found 1 names for []"],
    ),
    "a gripper beyond the action": (
        set_gripper,
        ["gripper_dim: expected a dimension of [7]; found 7"],
    ),
    "a gripper beyond the last axis": (
        give_action_two_axes,
        ["gripper_dim: expected a dimension of [8, 2]; found 6"],
    ),
    "a gripper of the list beyond the action": (
        lambda m: m["conventions"].update(
            gripper_dim=None,
            gripper_open=1.0,
            gripper_close=0.0,
            grippers=[{"dim": 6}, {"dim": 13, "kind": "continuous"}],
        ),
        ["grippers.dim: expected a dimension of [7]; found 13"],
    ),
    "rotations outside their features": (
        lambda m: m["conventions"].update(
            rotations=[
                {"feature": "observation/proprio", "dim": 5, "representation": "quaternion_xyzw"},
                {"feature": "observation/pose", "dim": 0, "representation": "axis_angle"},
            ]
        ),
        [
            "rotations: expected observation/proprio 5:9 quaternion_xyzw inside a vector; found "
            "[8]",
            "rotations: expected observation/pose 0:3 axis_angle inside a vector; found no such "
            "feature",
        ],
    ),
    "a gripper of a scalar": (
        declare("action", shape=[], dims=[]),
        ["gripper_dim: expected a dimension of []; found 6"],
    ),
    "a licence less": (
        lambda manifest: manifest["licences"].pop("steps"),
        ["licences: expected one of each column; found ['episodes', 'vggt_tokens']"],
    ),
    "a licence more": (
        lambda manifest: manifest["licences"].update(depth="unknown"),
        [
            "licences: expected one of each column; "
            "found ['depth', 'episodes', 'steps', 'vggt_tokens']"
        ],
    ),
    "an episode without steps": (
        lambda manifest: manifest.update(episode_lengths=[226, 0, 123, 106]),
        ["expected episodes of at least one step, each with one of the tasks; found 4 lengths"],
    ),
    "removed steps of fewer tasks": (
        lambda manifest: manifest["removed_steps"].pop(),
        ["removed_steps: expected one of each task; found 1"],
    ),
    "removed steps of more tasks": (
        lambda manifest: manifest["removed_steps"].append(0),
        ["removed_steps: expected one of each task; found 3"],
    ),
    "an encoder less": (
        forget_the_encoder,
        ["encoders: expected one of each feature without a source; found []"],
    ),
    "an encoder more": (
        name_the_encoder_of_a_source,
        ["encoders: expected one of each feature without a source; found ['observation/vggt_toke"],
    ),
    "other tokens than the encoder's": (
        compute_other_tokens,
        [
            "encoders observation/vggt_tokens: expected the feature that it describes; found "
            "tensor of float16[21, 64] in vggt_tokens"
        ],
    ),
    "a projection of another column": (
        project_from_elsewhere,
        [
            "encoders observation/vggt_tokens: expected a projection in the column's folder; "
            "found steps/p.npy"
        ],
    ),
    "several at once": (
        contradict_everywhere,
        [
            "licences: expected one of each column; found ['episodes', 'vggt_tokens']",
            COLUMNS,
            "feature discount: expected once; found 2 times",
            "feature observation/proprio: expected dims of its last axis; found 1 names for [8]",
            "feature observation/vggt_tokens: expected sizes above 0; found [0, 64]",
            "gripper_dim: expected a dimension of [7]; found 7",
            "expected episodes of at least one step, each with one of the tasks; "
            "found 4 lengths, 3 tasks of episodes, 2 tasks",
            "removed_steps: expected one of each task; found 1",
            "task_changes: expected steps inside their episodes, in order; found [(0, 0)]",
        ],
    ),
    "several columns at once": (
        spoil_every_column,
        [
            "column episodes: expected 4 records, one per episode; found 3 in shards of [2, 1]",
            STEPS_FOLDER + "'../x']",
            "column steps: expected 455 records, one per step; found 454 in shards of [226, 228]",
            "column vggt_tokens: expected 455 records, one per step; found 455 in shards of [-1",
        ],
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(copied, edit_schema, case: str) -> None:
    contradict, found = CONTRADICTIONS[case]

    def change(manifest: dict) -> None:
        # Hashes of episodes that the case moves or drops would be one more problem.
        del manifest["action_hashes"]
        contradict(manifest)

    edit_schema(copied, change)
    message = "dataset.json: expected a manifest that agrees with itself; found .*" + ".*; ".join(
        map(re.escape, found)
    )
    with pytest.raises(DataError, match=message) as caught:
        load_manifest(epath.Path(copied))
    assert str(caught.value).count("expected ") == 1 + len(found)
    assert str(caught.value).endswith(". Convert the dataset again.")


@pytest.mark.parametrize(
    "texts", [["0" * 32], ["0" * 48, "0" * 16], ["0" * 32, "0" * 31], ["0" * 32, "G" * 32]]
)
def test_hashes_of_other_episodes_than_there_are_are_refused(copied, edit_json, texts) -> None:
    edit_json(copied / "dataset.json", lambda manifest: manifest.update(action_hashes=texts))
    message = "action_hashes: expected 16 hex digits per episode, one text per shard of episodes; "
    with pytest.raises(DataError, match=message):
        load_manifest(epath.Path(copied))


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_control_frequency_that_is_no_rate_is_refused(copied, edit_json, value: float) -> None:
    def change(manifest: dict) -> None:
        manifest["conventions"]["control_frequency_hz"] = value  # NaN and Infinity in JSON

    edit_json(copied / "dataset.json", change)
    message = f"conventions: .*control_frequency_hz must be above 0 and finite, not {value}. Conv"
    with pytest.raises(DataError, match=message):
        load_manifest(epath.Path(copied))


def test_a_computed_column_survives_the_text(copied, edit_schema) -> None:
    edit_schema(copied, compute)
    manifest = load_manifest(epath.Path(copied))
    assert manifest.encoders["observation/vggt_tokens"].layer == 1
    (copied / "dataset.json").write_text(manifest.dumps())
    assert load_manifest(epath.Path(copied)) == manifest


def test_the_digest_covers_how_tokens_were_made(copied, edit_schema) -> None:
    edit_schema(copied, compute)
    manifest = load_manifest(epath.Path(copied))
    ((key, origin),) = manifest.encoders.items()

    def changed(**fields: object) -> Manifest:
        spec = dataclasses.replace(origin.encoder, **fields)
        made = dataclasses.replace(origin, encoder=spec)
        return dataclasses.replace(manifest, encoders={key: made})

    assert changed(weights_digest="e").digest() != manifest.digest()
    assert changed(weights_digest="e").digest({"steps"}) == manifest.digest({"steps"})
    assert changed(weights_digest="e").data_digest() == manifest.data_digest()
    assert changed(weights="/elsewhere", licence="none").digest() == manifest.digest()


def test_a_dataset_without_computed_columns_has_no_field_for_them(
    mini_dataset: pathlib.Path,
) -> None:
    """So a release of before reads it, and what that wrote is read."""
    assert "encoders" not in json.loads((mini_dataset / "dataset.json").read_text())
    assert load_manifest(epath.Path(mini_dataset)).encoders == {}


def test_an_origin_that_contradicts_itself_is_refused(copied, edit_schema) -> None:
    edit_schema(copied, lambda manifest: compute(manifest, keep="everything"))
    with pytest.raises(DataError, match=r"encoders\.observation/vggt_tokens: keep must be all"):
        load_manifest(epath.Path(copied))


def test_contradictions_of_many_episodes_are_short(mini_dataset) -> None:
    manifest = load_manifest(epath.Path(mini_dataset))
    changes = tuple(TaskChange(0, 1, 0) for _ in range(1000))
    numbers = tuple(range(1000))
    changed = dataclasses.replace(manifest, task_changes=changes, excluded_episodes=numbers)
    with pytest.raises(DataError) as caught:
        check_consistency(changed, "here")
    found = "(0, 1), (0, 1), (0, 1), (0, 1), (0, 1) and 1,993 more"
    assert f"in order; found [{found}]; " in str(caught.value)
    assert "numbers from 0 to 3; found [4, 5, 6, 7, 8 and 991 more]. " in str(caught.value)
