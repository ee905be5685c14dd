"""Computed tokens: what is stored is what a rollout makes, and what training reads."""

import dataclasses
import functools
import json
import pathlib
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from rich.console import Console

from converters.export.rlds_restoration import declared_features
from converters.job.columns import remove_column
from converters.verify.__main__ import open_converted, summary
from converters.verify.verifier import Verifier
from converters.vggt import __main__ as command, token_job
from converters.vggt.sample_errors import sample_steps
from converters.vggt.token_job import TokenJob, TokenSettings, add_tokens, report
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.images import decode_image
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.token_provenance import (
    Keep,
    TokenOrigin,
    check_same_encoders,
)
from pipeline.errors import DataError, SchemaError, UserError
from pipeline.inspection.dataset_summary import summarize
from pipeline.inspection.summary_tables import to_text
from pipeline.loading.data_config import DataConfig, DatasetConfig
from pipeline.loading.loader import Loader
from pipeline.vggt import encoder
from pipeline.vggt.aggregator_weights import load_for
from pipeline.vggt.encoder import VggtEncoder
from pipeline.vggt.token_storage import TokenEncoder, merged_spec
from tests.converters.kill_moments import kill_after_first_shard
from tests.file_checksums import contents
from tests.processes import Command

ROOT = pathlib.Path(__file__).parents[3]
BOTH = ("image_primary", "image_wrist")


def make_job(directory: pathlib.Path, batch_size: int = 16, **settings: Any) -> TokenJob:
    settings = {"name": "t", "image_size": (56, 56)} | settings
    dataset = open_dataset(str(directory))
    return TokenJob.load(dataset, TokenSettings(**settings), "random:tiny", batch_size)


def compute(directory: pathlib.Path, *, overwrite: bool = False, **settings: Any) -> Manifest:
    return add_tokens(make_job(directory, **settings), overwrite=overwrite)


@pytest.fixture(scope="module")
def mini_rlds(short_rlds: pathlib.Path) -> pathlib.Path:
    """No test here needs more steps than the cut set has."""
    return short_rlds


@pytest.fixture(scope="module")
def mini_dataset(short_dataset: pathlib.Path) -> pathlib.Path:
    """It, converted once."""
    return short_dataset


@pytest.fixture(scope="module", autouse=True)
def _shared_weights() -> Iterator[None]:
    """Jobs share their random weights and, beyond the eight that are kept, the programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_job, "load_weights", functools.cache(token_job.load_weights))
        program = encoder._program.__wrapped__
        patch.setattr(encoder, "_program", functools.cache(program))
        yield


@pytest.fixture
def copied(mini_dataset: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(mini_dataset, tmp_path / "mini"))


def _project_as_early_releases(directory: pathlib.Path, column: str) -> None:
    """Declares a column of 16 patches of 64 values as one that was projected to 64 values."""
    manifest, key = load_manifest(epath.Path(directory)), f"observation/{column}"
    file = f"{column}/{column}-0123456789abcdef.npy"
    origin = dataclasses.replace(
        manifest.encoders[key],
        keep="project:64",
        projection=file,
        projection_digest="0" * 32,
        reduction_error=0.2,
    )
    encoders = manifest.encoders | {key: origin}
    text = dataclasses.replace(manifest, encoders=encoders).dumps()
    (directory / "dataset.json").write_text(text)
    np.save(directory / file, np.zeros((65, 64), np.float32))


@pytest.fixture(scope="module")
def tokened(mini_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A dataset with token columns: two layers of joint and of single cameras; int8; pooled."""
    out = pathlib.Path(shutil.copytree(mini_dataset, tmp_path_factory.mktemp("tokens") / "mini"))
    compute(out, name="pair", cameras=BOTH, views="joint", layers=(0, 1))
    compute(out, name="each", cameras=BOTH, views="single", layers=(0, 1))
    compute(out, name="small", store="int8")
    compute(out, name="pooled", keep=Keep("pool", 4), store="bf16")
    compute(out, name="flat", keep=Keep("patches"))
    _project_as_early_releases(out, "flat")
    return out


def images(dataset: Dataset, steps: list[int]) -> list[np.ndarray]:
    """uint8 (b, y, x, 3) of each camera."""
    arrays = [np.empty((len(steps), 128, 128, 3), np.uint8) for _ in BOTH]
    for n, step in enumerate(steps):
        record = dataset.columns["steps"].read(step)
        for camera, array in zip(BOTH, arrays, strict=True):
            decode_image(record[f"observation/{camera}"], array[n], "here")
    return arrays


def loader_of(*paths: pathlib.Path, observations: tuple[str, ...], **settings: Any) -> Loader:
    parts = tuple(DatasetConfig(str(path)) for path in paths)
    config = DataConfig(parts, "", observations, num_threads=0, **settings)
    datasets = [open_dataset(part.path, config.keys) for part in parts]
    return Loader(config, 4, datasets, lambda text: [len(text), 1])


def origins_of(directory: pathlib.Path, prefix: str) -> dict[str, TokenOrigin]:
    encoders = load_manifest(epath.Path(directory)).encoders
    return {k: o for k, o in encoders.items() if k.startswith(f"observation/{prefix}")}


def online(directory: pathlib.Path, prefix: str) -> TokenEncoder:
    """Makes tokens as a rollout does, from nothing but what is stored about them."""
    origins = origins_of(directory, prefix)
    spec = merged_spec(origins)
    return TokenEncoder(VggtEncoder(spec, load_for(spec)), origins)


# --- what is stored


def test_features_are_named_by_layer_and_camera(tokened: pathlib.Path) -> None:
    dataset = open_dataset(str(tokened))
    declared = {
        feature.key: (column.name, feature.dtype, feature.batch_dtype, feature.shape)
        for column, feature in dataset.manifest.schema.features()
        if not feature.source
    }
    pair = ("pair", "float16", "float16", (21, 64))
    each = ("each", *pair[1:])
    assert declared == {
        "observation/pair_0_primary": pair,
        "observation/pair_0_wrist": pair,
        "observation/pair_1_primary": pair,
        "observation/pair_1_wrist": pair,
        "observation/each_0_primary": each,
        "observation/each_0_wrist": each,
        "observation/each_1_primary": each,
        "observation/each_1_wrist": each,
        "observation/small": ("small", "int8x64+5", "float32", (21, 64)),
        "observation/pooled": ("pooled", "bfloat16", "float32", (4, 64)),
        "observation/flat": ("flat", "float16", "float16", (16, 64)),
    }
    assert dataset.manifest.licences["pair"] == (
        "none: random numbers (weights); CC-BY-4.0 (images)"
    )


def test_what_is_known_of_tokens_is_stored(tokened: pathlib.Path) -> None:
    joint = origins_of(tokened, "pair")["observation/pair_0_wrist"]
    assert (joint.encoder.cameras, joint.camera, joint.layer) == (BOTH, "image_wrist", 0)
    assert (joint.encoder.views, joint.encoder.image_size) == ("joint", (56, 56))
    assert len(joint.encoder.weights_digest) == 32
    (small,) = origins_of(tokened, "small").values()
    assert (small.encoder.cameras, small.layer, small.store) == (BOTH[:1], 1, "int8")
    assert 4e-3 < small.storage_error < 6e-3
    assert small.reduction_error == 0
    (pooled,) = origins_of(tokened, "pooled").values()
    assert 1.5e-3 < pooled.storage_error < 1.9e-3
    assert 0.6 < pooled.reduction_error < 0.9


def test_tokens_that_an_early_release_projected_are_read_and_not_made(
    tokened: pathlib.Path,
) -> None:
    loader = loader_of(tokened, observations=("proprio", "flat"))
    batch = loader.read(0, [0, 1, 2, 3])["observation"]["flat"]
    stored = loader.datasets[0].columns["flat"].read(3)["observation/flat"]
    np.testing.assert_array_equal(batch[3, 1], stored)
    message = r"observation/flat: expected .* or pooled; found project:64, which only early release"
    with pytest.raises(UserError, match=message):
        online(tokened, "flat")


@pytest.mark.parametrize("prefix", ["pair", "small", "pooled"])
def test_stored_tokens_are_those_of_a_rollout(tokened: pathlib.Path, prefix: str) -> None:
    """The last bits depend on how many pictures are encoded at a time."""
    dataset = open_dataset(str(tokened))
    steps = [0, 14, 15, 52]
    encode = online(tokened, prefix)
    found = encode(images(dataset, steps)[: len(encode.encoder.spec.cameras)])
    name = prefix
    read = encode.read([dataset.columns[name].read(step) for step in steps])
    for key, tokens in found.items():
        assert tokens.dtype == read[key].dtype
        values = read[key].astype(np.float64)
        error = np.sqrt(((tokens - values) ** 2).mean() / (values**2).mean())
        assert error < 1e-3, key
        assert np.abs(values).std() > 0.1


@pytest.mark.parametrize("name", ["pair", "each"])
def test_each_feature_is_of_its_own_layer_and_camera(tokened: pathlib.Path, name: str) -> None:
    """Compared with the encoder alone, whose views are in the order of the cameras."""
    alone = online(tokened, name).encoder
    dataset = open_dataset(str(tokened))
    steps = [3, 14, 15, 40]
    encoded = alone.encode(images(dataset, steps))
    assert alone.spec.views == ("joint" if name == "pair" else "single")
    for layer in (0, 1):
        for view, camera in enumerate(("primary", "wrist")):
            key = f"observation/{name}_{layer}_{camera}"
            for sample, step in enumerate(steps):
                found = dataset.columns[name].read(step)[key]
                expected = np.asarray(encoded[layer][sample, view])
                np.testing.assert_allclose(found, expected, atol=4e-3)


def test_a_batch_has_the_stored_tokens_decoded(tokened: pathlib.Path) -> None:
    """Two token columns at once, one of them coded."""
    names = ("pair_1_wrist", "small", "pooled")
    loader = loader_of(tokened, observations=("proprio", *names))
    assert str(loader.spec["observation/small"]) == "float32[4,2,21,64]"
    (dataset,) = loader.datasets
    code = next(f for _, f in dataset.manifest.schema.features() if f.kind == "quantized").code
    for step in (0, 7, 14):
        observation = loader.read(0, [step, 5, 6, 7])["observation"]
        small = np.empty((21, 64), np.float32)
        code.decode(dataset.columns["small"].read(step)["observation/small"], small, "here")
        np.testing.assert_array_equal(observation["small"][0, 1], small)
        wrist = dataset.columns["pair"].read(step)["observation/pair_1_wrist"]
        np.testing.assert_array_equal(observation["pair_1_wrist"][0, 1], wrist)
        pooled = dataset.columns["pooled"].read(step)["observation/pooled"]
        np.testing.assert_array_equal(observation["pooled"][0, 1], pooled.astype(np.float32))


def test_only_the_columns_that_a_run_names_need_to_be_there(
    tokened: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = pathlib.Path(shutil.copytree(tokened, tmp_path / "mini"))
    shutil.rmtree(out / "pair")
    assert next(loader_of(out, observations=("proprio", "small")).batches())
    with pytest.raises(DataError, match=r"column pair: expected .* bytes; found no such file"):
        loader_of(out, observations=("proprio", "pair_0_wrist"))


def test_a_corrupt_record_is_named(tokened: pathlib.Path, monkeypatch: Any) -> None:
    loader = loader_of(tokened, observations=("proprio", "small"))
    reader = loader.datasets[0].columns["small"]
    monkeypatch.setattr(type(reader), "read", lambda self, index: {"observation/small": b"123"})
    message = r"small/.*arrayrecord, record 0, observation/small: expected 1728 bytes of int8x64\+5"
    with pytest.raises(DataError, match=message):
        reader.read_into(0, {"observation/small": np.empty((21, 64), np.float32)})


def test_removing_one_leaves_the_others(tokened: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = pathlib.Path(shutil.copytree(tokened, tmp_path / "mini"))
    before = load_manifest(epath.Path(out))
    remove_column(epath.Path(out), "flat")
    after = load_manifest(epath.Path(out))
    assert not (out / "flat").exists()
    assert {name: before.shards[name] for name in after.shards} == after.shards
    assert set(before.shards) - set(after.shards) == {"flat"}
    assert set(before.encoders) - set(after.encoders) == {"observation/flat"}
    kept = set(after.shards)
    assert after.digest() == before.digest(kept)
    assert (out / "small").exists()


# --- the job


def test_any_batch_gives_every_step_its_own_tokens(copied: pathlib.Path) -> None:
    compute(copied, batch_size=16)
    compute(copied, batch_size=6, name="other")
    dataset = open_dataset(str(copied))
    for step in range(53):
        ours = dataset.columns["t"].read(step)["observation/t"].astype(np.float32)
        theirs = dataset.columns["other"].read(step)["observation/other"].astype(np.float32)
        np.testing.assert_allclose(ours, theirs, atol=4e-3)


def test_the_same_column_once_more_is_not_computed(copied: pathlib.Path) -> None:
    first = compute(copied)
    reported: list[int] = []
    again = add_tokens(
        make_job(copied),
        overwrite=True,
        on_progress=lambda frames, num_bytes: reported.append(frames),
    )
    assert again == first
    assert reported == []


def test_a_computed_column_is_replaced(copied: pathlib.Path) -> None:
    compute(copied)
    with pytest.raises(UserError, match="column t: expected a new column; found one that was comp"):
        compute(copied, store="int8")
    manifest = compute(copied, store="int8", overwrite=True)
    assert manifest.encoders["observation/t"].store == "int8"
    assert len(list((copied / "t").iterdir())) == 2


def test_progress_counts_frames_and_what_was_done_before(copied: pathlib.Path) -> None:
    reported: list[tuple[int, int]] = []

    class KilledError(Exception):
        pass

    def until_the_second_shard(frames: int, num_bytes: int) -> None:
        reported.append((frames, num_bytes))
        if sum(frames for frames, _ in reported) > 60:
            raise KilledError

    job = make_job(copied, cameras=BOTH)
    with pytest.raises(KilledError):
        add_tokens(job, on_progress=until_the_second_shard)
    reported.clear()
    add_tokens(job, on_progress=lambda frames, num_bytes: reported.append((frames, num_bytes)))
    assert reported[0] == (2 * 26, 0)
    assert sum(frames for frames, _ in reported) == 2 * 53
    assert sum(num_bytes for _, num_bytes in reported) == 27 * 2 * 2688


def test_tokens_that_do_not_fit_stop_the_job_and_name_the_step(
    copied: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(self: TokenEncoder, pictures: Any) -> dict[str, Any]:
        return {key: jnp.full((64, 21, 64), 7e4, np.float32) for key in self.origins}

    monkeypatch.setattr(TokenEncoder, "tokens", too_large)
    message = r"mini, episode 0, step \d+, observation/t: expected tokens up to 65504, .* found one"
    with pytest.raises(DataError, match=message + r" of 70000\. Store them with --store bf16\."):
        compute(copied)
    assert not load_manifest(epath.Path(copied)).encoders
    compute(copied, store="bf16", overwrite=True)


@pytest.mark.parametrize(("num_steps", "size"), [(1, 1), (5, 2), (455, 32)])
def test_a_sample_is_drawn_from_a_seed(num_steps: int, size: int) -> None:
    steps = sample_steps(num_steps)
    assert len(set(steps)) == size
    assert steps == sorted(steps) == sample_steps(num_steps)
    assert set(steps) <= set(range(num_steps))


def test_a_report_writes_nothing(copied: pathlib.Path) -> None:
    before = sorted(copied.rglob("*"))
    text = report(make_job(copied, keep=Keep("pool", 4), cameras=BOTH))
    assert sorted(copied.rglob("*")) == before
    assert text.startswith("t_primary, t_wrist: 53 steps of image_primary, image_wrist, 4 x 64 pe")
    assert re.search(r"^f16 +1,024 +0\.000  2\.\de-04$", text, re.MULTILINE)
    assert re.search(r"^int8 +544 +0\.000  [45]\.\de-03$", text, re.MULTILINE)
    assert re.search(r"pool:4 loses 0\.\d+ of the patches' tokens before", text)
    assert re.search(r"speed: [\d,.]+ frames/s on 2 x cpu: about \d:\d\d for 106 frames", text)
    assert text.endswith("nothing was written\n")


# --- the rest of the project


def test_verify_knows_that_computed_tokens_are_not_in_the_source(
    tokened: pathlib.Path, mini_rlds: pathlib.Path
) -> None:
    manifest = load_manifest(epath.Path(tokened))
    verifier = Verifier(epath.Path(tokened), manifest, open_converted(str(mini_rlds), manifest))
    assert verifier.run().text() == ""
    lines = summary(verifier, 1.0).splitlines()
    (line,) = (line for line in lines if line.startswith("computed, not in the source: "))
    assert line.endswith("observation/small, observation/pooled, observation/flat")
    assert lines[1].startswith("1,060 tensors, 106 images, 57 texts")


def test_an_export_leaves_computed_tokens_out(
    tokened: pathlib.Path, mini_dataset: pathlib.Path
) -> None:
    ours, theirs = (
        declared_features(load_manifest(epath.Path(path)), {}) for path in (tokened, mini_dataset)
    )
    assert repr(ours) == repr(theirs)


def test_inspect_tells_how_tokens_were_made(tokened: pathlib.Path) -> None:
    text = to_text(summarize(open_dataset(str(tokened))), Console(width=300))
    assert re.search(
        r"observation/small\s+random:tiny \([0-9a-f]{8}\), layer 1, image_primary alone at 56x56 "
        r"bicubic, all as int8 \(error [45]\.\de-03\)",
        text,
    )
    assert "image_wrist of image_primary and image_wrist at 56x56" in text
    assert re.search(r"observation/small +small +int8x64\+5 +float32 +21 64 +1,728", text)


def test_datasets_of_another_encoder_are_not_mixed(
    tokened: pathlib.Path, copied: pathlib.Path
) -> None:
    compute(copied, name="small", keep=Keep("pool", 4))
    compute(copied, name="pooled", keep=Keep("pool", 4), layers=(0,), store="bf16")
    with pytest.raises(UserError, match=r"pooled, beside .*: expected layers \[1\]; found layers"):
        loader_of(tokened, copied, observations=("proprio", "pooled"))
    with pytest.raises(SchemaError, match=r"expected float32\[21, 64\], as "):
        loader_of(tokened, copied, observations=("proprio", "small"))


def test_tokens_of_an_unknown_encoder_are_not_mixed(
    copied: pathlib.Path, mini_dataset: pathlib.Path
) -> None:
    remove_column(epath.Path(copied), "vggt_tokens")
    compute(copied, name="vggt_tokens")
    with pytest.raises(SchemaError, match="found computed ones beside some of the source, whose"):
        loader_of(mini_dataset, copied, observations=("proprio", "vggt_tokens"))


def test_a_checkpoint_keeps_the_encoders_of_what_is_read(
    tokened: pathlib.Path, copied: pathlib.Path
) -> None:
    kept = loader_of(tokened, observations=("proprio", "pooled")).describe_datasets()
    (described,) = kept.values()
    assert list(described["encoders"]) == ["observation/pooled"]
    kept = json.loads(json.dumps(kept))
    compute(copied, name="pooled", keep=Keep("pool", 4), store="int8")
    same = loader_of(copied, observations=("proprio", "pooled")).describe_datasets()
    check_same_encoders(kept, same)
    compute(copied, name="pooled", keep=Keep("pool", 4), image_size=(70, 70), overwrite=True)
    other = loader_of(copied, observations=("proprio", "pooled")).describe_datasets()
    with pytest.raises(UserError, match=r"expected image_size \[56, 56\]; found image_size \[70,"):
        check_same_encoders(kept, other)


# --- the command


def start(*arguments: object, before: Callable[[], None] | None = None) -> Command:
    cache = str(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    env = {"JAX_COMPILATION_CACHE_DIR": cache}
    return Command("converters.vggt", *arguments, env=env, before=before)


NAME = ("--name", "t")
TINY = ("--weights", "random:tiny", "--size", "56", *NAME)
RUN = (*TINY, "--batch_size", "16")
"""Runs the program that the jobs of this process have compiled."""


@pytest.fixture(scope="module")
def whole(mini_dataset: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed job leaves."""
    out = pathlib.Path(shutil.copytree(mini_dataset, tmp_path_factory.mktemp("whole") / "mini"))
    compute(out, batch_size=16)
    return contents(out)


def test_a_killed_command_still_reaches_the_same_bytes(
    copied: pathlib.Path, whole: dict[str, str]
) -> None:
    """Killed once its first shard is done."""
    start(copied, *RUN, before=kill_after_first_shard).finish(-signal.SIGKILL)
    assert (copied / ".conversion" / "t.00000.column-part.json").exists()
    assert open_dataset(str(copied)).num_steps == 53
    assert not load_manifest(epath.Path(copied)).encoders
    output = start(copied, *RUN).finish().stdout
    assert re.match(
        r"t: 0\.4 MB in \d+\.\d s\n  observation/t +float16\[21, 64\], storage cha", output
    )
    assert contents(copied) == whole


@pytest.mark.slow
def test_a_command_that_is_killed_often_still_reaches_the_same_bytes(
    copied: pathlib.Path, whole: dict[str, str]
) -> None:
    """The command is killed at random moments of its work."""
    rng = random.Random(0)
    killed = 0
    while killed < 20:
        job = start(copied, *RUN, "--overwrite")
        note = copied / ".conversion" / "t.column.json"
        while not note.exists() and job.returncode is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2))
        job.kill()
        killed += job.returncode == -signal.SIGKILL
        assert open_dataset(str(copied)).num_steps == 53
        if job.returncode == 0:
            remove_column(epath.Path(copied), "t")
    start(copied, *RUN).finish()
    assert contents(copied) == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command line: expected weights; found no --weights, such as --weights hf://faceb"),
        (
            ["--name", "t", "--weights", "gone.safetensors"],
            "gone.safetensors: expected a file; found none.",
        ),
        (
            ["--name", "t", "--weights", "gone", "--licence", "MIT"],
            "gone: expected a file; found none.",
        ),
        ([*TINY, "--layers", "a"], "expected whole numbers with commas between with --layers, su"),
        ([*TINY, "--layers", "2"], "found layers must be from 0 to 1, not (2,)."),
        ([*TINY, "--size", "57"], "found image_size must be multiples of 14, not (57, 57)."),
        ([*TINY, "--size", "big"], "expected pixels with --size, such as 224, or height x width"),
        ([*TINY, "--keep", "project:16"], "found project:16, which only early releases computed"),
        ([*TINY, "--keep", "pool:60"], "found keep must be pool: of a square number, such as po"),
        ([*TINY, "--keep", "pool:25"], "pool:25 is a grid of 5 by 5, but the patches are 4 by 4"),
        ([*TINY, "--cameras", "left"], "--cameras left: expected cameras among primary, wrist, e"),
        ([*TINY, "--cameras", "wrist,wrist"], "found wrist, wrist. Write them with commas betwe"),
        ([*TINY, "--batch_size", "3"], "expected a multiple of 2, the number of devices, with --b"),
        ([*TINY[:-1], "steps"], "column steps: expected a new column; found one of the source, w"),
        ([*TINY[:-1], "../x"], "expected a name of letters, digits, underscores, dots and hyphen"),
        (["--remove", "x"], "column x: expected one of episodes, steps, vggt_tokens; found no su"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    mini_dataset: pathlib.Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(mini_dataset.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["vggt", str(mini_dataset), *arguments])
    with pytest.raises(SystemExit) as caught:
        command.main()
    output, errors = capsys.readouterr()
    assert (caught.value.code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    assert message in errors
    assert sorted(mini_dataset.rglob("*")) == before


def test_a_column_is_removed_by_a_flag(copied: pathlib.Path) -> None:
    job = start(copied, "--remove", "vggt_tokens").finish()
    assert job.stderr == ""
    assert job.stdout == "removed vggt_tokens: 0.4 MB are free again\n"
