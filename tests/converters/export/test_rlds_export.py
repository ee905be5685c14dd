"""What is exported is what tensorflow-datasets read in the source, or nothing is there at all."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from flax import traverse_util
from PIL import Image

from converters.edit import Args, edit
from converters.export import rlds_export as command
from converters.export.rlds_export import export_rlds
from converters.job.convert import convert
from converters.mapping.mapping_registry import registered
from converters.mapping.standardize import FeatureMapping, SourceMapping
from converters.rlds.tfrecord import read_records
from converters.sources.open_source import open_source
from pipeline.data.conventions import Conventions
from pipeline.data.dataset import open_dataset
from pipeline.errors import DataError, UserError
from tests.converters.memory_source import MemorySource
from tests.file_checksums import contents

TYPES = {
    "float64": np.array([0.5, 1e-30, -3.25]),
    "int8": np.array([-128, 0, 127]),
    "int32": np.array([-5, 0, 5]),
    "int64": np.array([-(2**31), 0, 2**31 - 1]),
    "uint16": np.array([0, 1, 2**16 - 1]),
    "uint64": np.array([0, 1, 2**31 - 1]),
    "uint8": np.array([0, 1, 255]),
    "bool": np.array([1, 0, 1]),
    "float16": np.array([0.5, 1.0, -2.0]),
    "bfloat16": np.array([0.5, 1.0, -2.0]),
}


def decoded(version: Path) -> Iterator[dict[str, list[Any]]]:
    """The values of each episode as tensorflow-datasets decodes them, by source key."""
    features = tfds.builder_from_directory(version).info.features
    for path in sorted(version.glob("*.tfrecord-*")):
        for record in read_records(epath.Path(path)):
            episode: Any = features.deserialize_example_np(bytes(record))
            steps = list(episode.pop("steps"))
            values = {k: [v] for k, v in traverse_util.flatten_dict(episode, sep="/").items()}
            for step in steps:
                for key, value in traverse_util.flatten_dict({"steps": step}, sep="/").items():
                    values.setdefault(key, []).append(value)
            yield values


def check_same(exported: Path, source: Path) -> int:
    """Compares two RLDS directories by tensorflow-datasets' decoding; returns their episodes."""
    episodes = list(zip(decoded(exported), decoded(source), strict=True))
    for ours, theirs in episodes:
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            assert len(ours[key]) == len(values)
            for found, expected in zip(ours[key], values, strict=True):
                np.testing.assert_array_equal(found, expected)
                assert np.asarray(found).dtype == np.asarray(expected).dtype
    return len(episodes)


def converted(toy: Any, directory: Path) -> tuple[Path, Path]:
    """(dataset, source)."""
    source = toy.write(directory / "its_source")
    convert(open_source(str(source)), directory / "out", toy.mapping)
    return directory / "out", source


@pytest.fixture
def out(toy: Any, tmp_path: Path) -> Path:
    return converted(toy, tmp_path)[0]


def export_of(dataset: Path) -> Path:
    return export_rlds(open_dataset(str(dataset)))


# --- what is written


def test_the_bundled_set_comes_back_as_tensorflow_datasets_reads_it(
    mini_rlds: Path, mini_dataset: Path, tmp_path: Path
) -> None:
    version = export_rlds(open_dataset(str(mini_dataset)), str(tmp_path / "mini"))
    assert version == tmp_path / "mini" / "1.0.0"
    assert check_same(version, mini_rlds) == 4
    info, source = (json.loads((v / "dataset_info.json").read_text()) for v in (version, mini_rlds))
    (split,), (source_split,) = info["splits"], source["splits"]
    assert split == source_split
    assert (info["name"], info["version"]) == ("libero_mini", "1.0.0")
    assert {path.name for path in version.iterdir()} == {path.name for path in mini_rlds.iterdir()}


def test_a_converted_export_is_the_same_dataset(mini_dataset: Path, tmp_path: Path) -> None:
    version = export_rlds(open_dataset(str(mini_dataset)), str(tmp_path / "mini"))
    convert(open_source(str(version)), tmp_path / "again", registered("libero"))
    assert contents(tmp_path / "again") == contents(mini_dataset)


def test_tokens_of_the_full_size_come_back(shared: Path, tmp_path: Path) -> None:
    source = shared / "libero" / "rlds" / "libero_sim_vggt" / "1.0.0"
    if not source.exists():
        pytest.skip("libero_sim_vggt is missing")
    convert(open_source(str(source)), tmp_path / "out", registered("libero"))
    assert check_same(export_of(tmp_path / "out"), source) == 2


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("name", TYPES)
def test_every_dtype_is_that_of_the_source_again(
    toy: Any, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    values = np.broadcast_to(TYPES[name].reshape(3, *(1 for _ in shape)), (3, *shape))
    listed = np.float32(values) if "float" in name else np.int64(values)
    feature = tfds.features.Tensor(shape=shape, dtype=dtype)
    dataset, source = converted(toy.having("steps/value", feature, listed), tmp_path)
    version = export_of(dataset)
    assert check_same(version, source) == 4
    found = next(decoded(version))["steps/value"]
    assert {np.asarray(value).dtype for value in found} == {dtype}
    np.testing.assert_array_equal(np.float64(found), np.float64(listed))


def test_half_precision_in_a_column_of_its_own_comes_back(toy: Any, tmp_path: Path) -> None:
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        key = f"steps/observation/{name}"
        feature = tfds.features.Tensor(shape=(2,), dtype=np.dtype(dtype))
        toy = toy.declaring(key, feature).holding(key, np.arange(6.0).reshape(3, 2))
        toy = toy.taking(FeatureMapping(name, key, f"tokens_{name}"))
    dataset, source = converted(toy, tmp_path)
    assert check_same(export_of(dataset), source) == 4


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("images", "encoding"),
    [(["png", "png", "png"], "png"), (["jpeg", "jpeg", "jpeg"], "jpeg"), (["png", "jpeg"], None)],
)
def test_images_are_the_same_bytes_and_their_format_is_declared(
    toy: Any, tmp_path: Path, images: list[str], encoding: str | None
) -> None:
    key = "steps/observation/image"
    jpegs = toy.episodes[0][key]
    held = [png(t) if kind == "png" else jpegs[t] for t, kind in enumerate(images)]
    toy = dataclasses.replace(
        toy,
        episodes=tuple(
            {k: v[: len(held)] if k.startswith("steps/") else v for k, v in e.items()}
            for e in toy.episodes
        ),
    ).holding(key, held)
    toy = toy.declaring(key, tfds.features.Image(shape=(8, 8, 3)))
    dataset, source = converted(toy, tmp_path)
    version = export_of(dataset)
    assert check_same(version, source) == 4
    declared: Any = tfds.builder_from_directory(version).info.features
    content = declared["steps"]["observation"]["image"].to_json_content()
    assert (content.encoding_format or None) == encoding
    convert(open_source(str(version)), tmp_path / "again", toy.mapping)
    assert contents(tmp_path / "again") == contents(dataset)


def test_values_and_texts_of_the_whole_episode_are_written_once(toy: Any, tmp_path: Path) -> None:
    toy = toy.having("episode_metadata/mass_kg", tfds.features.Scalar(np.float64), [2.5])
    toy = toy.declaring("task", tfds.features.Text()).holding("task", ["öffne".encode()])
    toy = toy.without("steps/language_instruction")
    features = {k: v for k, v in toy.features.items() if k != "steps/language_instruction"}
    mapping = dataclasses.replace(toy.mapping, task="task")
    toy = dataclasses.replace(toy, features=features, mapping=mapping)
    dataset, source = converted(toy, tmp_path)
    assert check_same(export_of(dataset), source) == 4


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("steps/observation/image", "steps"),
        ("steps/observation/image", "images"),
        ("steps/action", "episodes"),
        ("steps/action", "commands"),
        ("steps/tokens", "tokens"),
    ],
)
def test_one_source_key_of_two_features_is_written_once(
    toy: Any, tmp_path: Path, key: str, column: str
) -> None:
    feature = tfds.features.Tensor(shape=(2,), dtype=np.float16)
    toy = toy.declaring("steps/tokens", feature).holding("steps/tokens", np.arange(6.0))
    toy = toy.taking(FeatureMapping("observation/tokens", "steps/tokens", "tokens"))
    toy = toy.taking(FeatureMapping("observation/again", key, column))
    dataset, source = converted(toy, tmp_path)
    version = export_of(dataset)
    assert check_same(version, source) == 4
    convert(open_source(str(version)), tmp_path / "again", toy.mapping)
    assert contents(tmp_path / "again") == contents(dataset)


def test_the_documented_way_reads_an_export_without_tensorflow(out: Path) -> None:
    version = export_of(out)
    document = Path(__file__).parents[3] / "docs" / "your_data.md"
    _, _, section = document.read_text().partition("## Back to RLDS")
    code = section.partition("```python\n")[2].partition("```")[0]
    check = 'import sys; sys.exit("tensorflow" in sys.modules)'
    done = subprocess.run(
        [sys.executable, "-c", code.replace("DST_rlds/1.0.0", str(version)) + check],
        capture_output=True,
        text=True,
        check=False,
        cwd=document.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("b'lift the cup' (8, 8, 3) [") == 12


def test_instructions_that_change_come_back(toy: Any, tmp_path: Path) -> None:
    toy = toy.holding("steps/language_instruction", [b"lift", b"lift", b"place"])
    dataset, source = converted(toy, tmp_path)
    assert check_same(export_of(dataset), source) == 4


def test_a_corrected_instruction_is_exported_though_a_feature_holds_the_old_one(
    toy: Any, tmp_path: Path
) -> None:
    toy = toy.having("lang", tfds.features.Text(), [b"lift the cup"])
    mapping = dataclasses.replace(toy.mapping, task="lang", ignore=("steps/language_instruction",))
    dataset, _ = converted(dataclasses.replace(toy, mapping=mapping), tmp_path)
    edit(Args(str(dataset), instruction=(("lift the cup", "place the cup"),)))
    texts = [episode["lang"] for episode in decoded(export_of(dataset))]
    assert texts == [[b"place the cup"]] * 4


@pytest.mark.parametrize("order", [1, -1], ids=["parent first", "child first"])
def test_a_key_with_values_and_keys_below_it_is_refused(out: Path, order: int) -> None:
    state = "steps/observation/state"
    keys = (state, f"{state}/joint", f"{state}/joint/left", "steps/action")[::order]
    source = MemorySource(({key: np.zeros((3, 2), np.float32) for key in keys},))
    features = tuple(FeatureMapping(key.removeprefix("steps/"), key) for key in keys)
    conventions = Conventions("upright", "none", control_frequency_hz=10.0, no_ops="kept")
    convert(source, out.parent / "both", SourceMapping(features, conventions, task=""))
    version = export_of(out)
    before = contents(version)
    clashes = {
        f"{state} beside {state}/joint",
        f"{state} beside {state}/joint/left",
        f"{state}/joint beside {state}/joint/left",
    }
    with pytest.raises(UserError, match=r"memory: .* not both, .* as LeRobot, .*--to lerobot") as e:
        export_rlds(open_dataset(str(out.parent / "both")), str(version.parent), overwrite=True)
    assert set(e.value.found.split(", ")) == clashes
    assert contents(version) == before


def test_split_name_and_version_are_those_of_the_source(
    out: Path, reseal: Callable[[Path], None]
) -> None:
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["provenance"] |= {"version": "2.3.0", "split": "val"}
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    version = export_of(out)
    assert version == out.parent / "out_rlds" / "2.3.0"
    source = open_source(str(version), "val")
    assert (source.name, source.version) == ("toy", "2.3.0")
    assert [shard.num_episodes for shard in source.shards] == [2, 2]
    assert source.shards[0].paths[0].name == "toy-val.tfrecord-00000-of-00002"


@pytest.mark.parametrize("version", ["v2", "2024/05", "1.0", "1.02.0", "1.0.0\n"])
def test_a_version_that_rlds_does_not_know_becomes_the_first(
    out: Path, reseal: Callable[[Path], None], version: str
) -> None:
    manifest = json.loads((out / "dataset.json").read_text())
    manifest["provenance"]["version"] = version
    (out / "dataset.json").write_text(json.dumps(manifest))
    reseal(out)
    exported = export_of(out)
    assert exported.relative_to(out.parent) == Path("out_rlds/1.0.0")
    assert len(list(decoded(exported))) == 4


def test_sizes_are_those_of_the_records(out: Path) -> None:
    version = export_of(out)
    (split,) = json.loads((version / "dataset_info.json").read_text())["splits"]
    records = [
        r for path in sorted(version.glob("*.tfrecord*")) for r in read_records(epath.Path(path))
    ]
    assert split["numBytes"] == str(sum(map(len, records)))
    assert split["shardLengths"] == ["2", "2"]


def test_progress_is_reported_one_episode_at_a_time(out: Path) -> None:
    reported: list[tuple[int, int]] = []
    version = export_rlds(
        open_dataset(str(out)), on_progress=lambda n, size: reported.append((n, size))
    )
    sizes = [
        len(r)
        for path in sorted(version.glob("*.tfrecord*"))
        for r in read_records(epath.Path(path))
    ]
    assert reported == [(1, size) for size in sizes]


# --- the destination


def test_an_export_is_not_replaced_unasked(out: Path) -> None:
    version = export_of(out)
    before = contents(version)
    with pytest.raises(UserError, match=r"out_rlds: expected a new .* Replace it with --overwrite"):
        export_of(out)
    assert contents(version) == before


def test_overwrite_replaces_the_whole_export(toy: Any, out: Path, tmp_path: Path) -> None:
    longer = dataclasses.replace(toy, episodes=toy.episodes + toy.episodes[:2])
    dataset, _ = converted(longer, tmp_path / "longer")
    target = tmp_path / "target"
    export_rlds(open_dataset(str(dataset)), str(target))
    export_rlds(open_dataset(str(out)), str(target), overwrite=True)
    assert contents(target) == contents(export_of(out).parent)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "file", ["notes.txt", "features.json", "1.0.0/notes.txt", "1.0.0/more/features.json"]
)
def test_a_folder_with_other_files_is_left_alone(out: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / "target" / file
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    with pytest.raises(UserError, match=f"found other files: {file}. Name another destination"):
        export_rlds(open_dataset(str(out)), str(tmp_path / "target"), overwrite=True)
    assert path.read_text() == "precious"


def test_rlds_that_was_not_exported_is_left_alone(out: Path, toy: Any, tmp_path: Path) -> None:
    source = toy.write(tmp_path / "theirs")
    folder = tmp_path / "folder"
    folder.mkdir()
    source.rename(folder / "1.0.0")
    before = contents(folder)
    with pytest.raises(UserError, match=r"found 1\.0\.0, RLDS that does not say that this command"):
        export_rlds(open_dataset(str(out)), str(folder), overwrite=True)
    assert contents(folder) == before
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="found a link"):
        export_rlds(open_dataset(str(out)), str(tmp_path / "link"), overwrite=True)
    assert contents(folder) == before


def test_the_dataset_itself_is_no_destination(out: Path) -> None:
    before = contents(out)
    (out.parent / "link").symlink_to(out)
    for folder in (out, out / "steps", out / "new" / "folder", out.parent / "link" / "new"):
        message = rf"{folder}: .*found the dataset or a folder inside it\. Name another"
        with pytest.raises(UserError, match=message):
            export_rlds(open_dataset(str(out)), str(folder), overwrite=True)
    assert contents(out) == before
    assert not (out / "new").exists()


def test_a_file_is_no_destination(out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="expected a new local folder; found a file"):
        export_rlds(open_dataset(str(out)), str(tmp_path / "file"), overwrite=True)
    with pytest.raises(DataError, match=r"file.*: expected to write the export; found "):
        export_rlds(open_dataset(str(out)), str(tmp_path / "file" / "below"))
    assert (tmp_path / "file").read_text() == "precious"


def test_an_object_store_is_no_destination(out: Path) -> None:
    with pytest.raises(UserError, match=r"gs://bucket/toy: expected a new local folder"):
        export_rlds(open_dataset(str(out)), "gs://bucket/toy")


def test_an_object_store_is_no_source(
    object_store: epath.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", str(object_store / "out"), "--to", "rlds"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    report = capsys.readouterr().err
    assert re.fullmatch(r"error: s3://bucket/out: .*found an object store\. Copy .*\n", report)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_in_the_middle_leaves_what_was_there(out: Path, *, overwrite: bool) -> None:
    before = contents(export_of(out).parent) if overwrite else {}
    shard = out / "steps" / "00001-of-00002.arrayrecord"
    data = bytearray(shard.read_bytes())
    data[data.index(b"JFIF")] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"00001-of-00002\.arrayrecord, record 0: .* readable"):
        export_rlds(open_dataset(str(out)), overwrite=overwrite)
    assert contents(out.parent / "out_rlds") == before
    assert not list(out.parent.glob(".*"))


def test_a_rename_that_fails_puts_the_old_export_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_of(out).parent
    before = contents(folder)
    rename = Path.replace

    def fail_once(path: Path, target: Path) -> Path:
        if path.name.startswith(".") and not path.name.endswith(".old.tmp"):
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(DataError, match="to write the export; found No space left on device"):
        export_rlds(open_dataset(str(out)), overwrite=True)
    assert contents(folder) == before
    assert not list(out.parent.glob(".*"))


def killed_export(dataset: Path, *, before_rename: int) -> int:
    """The exit code of a process that replaces an export and is killed before the n-th rename."""
    code = f"""
import itertools, os, pathlib, signal
from converters.export.rlds_export import export_rlds
from pipeline.data.dataset import open_dataset

dataset, count, rename = open_dataset({str(dataset)!r}), itertools.count(1), pathlib.Path.replace

def replace(path, target):
    if next(count) == {before_rename}:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)

pathlib.Path.replace = replace
export_rlds(dataset, overwrite=True)
"""
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode


@pytest.mark.parametrize("before_rename", [1, 2])
def test_a_killed_export_leaves_the_old_one_to_the_next(out: Path, before_rename: int) -> None:
    folder = export_of(out).parent
    before = contents(folder)
    assert killed_export(out, before_rename=before_rename) == -signal.SIGKILL
    assert len(list(out.parent.glob(".*"))) == before_rename
    assert folder.exists() == (before_rename == 1)
    with pytest.raises(UserError, match=r"found one that exists\. Replace it with --overwrite"):
        export_of(out)
    assert contents(folder) == before
    assert not list(out.parent.glob(".*"))
    export_rlds(open_dataset(str(out)), overwrite=True)
    assert contents(folder) == before


def test_what_a_killed_export_left_beside_a_whole_one_goes(out: Path) -> None:
    folder = export_of(out).parent
    before = contents(folder)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pids = (f"0123abcd.{dead.pid}", str(dead.pid), str(os.getpid()))
    gone = [f".out_rlds.{pid}{end}" for pid in pids for end in (".tmp", ".old.tmp")]
    kept = [f".out_rlds.{os.getppid()}.tmp", f".other.{dead.pid}.tmp", ".out_rlds.mine.tmp"]
    for name in (*gone, *kept):
        (out.parent / name / "1.0.0").mkdir(parents=True)
    export_rlds(open_dataset(str(out)), overwrite=True)
    assert contents(folder) == before
    assert {path.name for path in out.parent.glob(".*")} == set(kept)


# --- the command


def test_the_command_tells_how_to_load_what_it_wrote(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", str(out), "--to", "rlds"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    version = out.parent / "out_rlds" / "1.0.0"
    assert re.fullmatch(r"4 episodes, 12 steps, \d+\.\d MB in \d+\.\d s, \d+\.\d MB/s", lines[0])
    assert lines[1] == f"RLDS: {version}"
    load = f'tfds.builder_from_directory("{version}").as_dataset(split="train")'
    assert lines[2:] == [
        f"with TensorFlow: {load}",
        "without it: see Back to RLDS in docs/your_data.md",
    ]
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert re.fullmatch(r"error: .*found one that exists.*\n", capsys.readouterr().err)


def test_the_command_lists_what_rlds_has_no_place_for(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mapping = toy.mapping.with_instruction("lift it")
    convert(toy.open(tmp_path), tmp_path / "out", mapping)
    edit(Args(str(tmp_path / "out"), failed="1-2"))
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "out"), "--to", "rlds"])
    command.main()
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "not exported: 1 instruction, for which the source has no key; --instruction gives one to "
        "all episodes, and --to lerobot keeps them",
        "not exported: which episodes failed; once it is converted: octograin edit DST --failed "
        "1-2",
    ]
