import dataclasses
import json
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from converters.job.columns import with_column
from pipeline.checksums import read_json
from pipeline.data.dataset import open_dataset
from pipeline.data.manifest import load_manifest
from pipeline.data.schema import Column
from pipeline.data.token_provenance import TokenOrigin
from pipeline.errors import DataError, RecordError, UserError
from pipeline.loading.data_config import DatasetConfig
from pipeline.loading.samples.splits import select
from pipeline.vggt.encoder_spec import EncoderSpec, tiny
from tests.processes import Command
from tests.train.conftest import TINY_CONFIG, random_state, write_checkpoints
from train.checkpoints.checkpoint_store import last_step
from train.checkpoints.run_directory import check, claimed
from train.flags import Flags, load_config
from train.guard import excludable
from train.metrics.step_metrics import read_metrics
from train.metrics.validation_files import read_episode, read_validation
from train.octo.octo_config import ImageTokenizerConfig, LanguageConfig, T5Config, demo
from train.octo.released.octo_checkpoint import OctoCheckpoint
from train.report.__main__ import main as write_report
from train.run import run
from train.run_setup import Setup
from train.train_config import ValidationConfig

ROOT = pathlib.Path(__file__).parents[2]


def command(config_path, *flags: str, env: dict[str, str] | None = None):
    """Runs `train.run` in a separate process."""
    line = ("--config", config_path, *flags)
    return Command("train.run", *line, env={"COLUMNS": "100", **(env or {})}).wait()


def losses_and_fingerprints(directory):
    rows = read_metrics(pathlib.Path(directory))
    return [(row.step, row.loss, row.batch_fingerprint) for row in rows]


def saved_params(directory, step):
    path = pathlib.Path(directory).absolute() / "checkpoints" / str(step) / "state"
    return ocp.StandardCheckpointer().restore(path)["params"]


@pytest.fixture(scope="module")
def tiny_config_path(tiny_config_path):
    """The variant that compiles fastest, which other tests compile as well."""
    return f"{tiny_config_path}:shallow"


@pytest.fixture
def tiny_config(tiny_config, tiny_config_path):
    """The same variant on the bundled set."""
    return dataclasses.replace(tiny_config, model=load_config(tiny_config_path).model)


@pytest.fixture(scope="module")
def whole_run(tiny_config_path, mini_dataset, tmp_path_factory):
    """A run of 20 steps in one process: (output, run directory)."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return command(tiny_config_path, *flags_of(mini_dataset, directory)), directory


def flags_of(dataset, directory):
    """Flags of a run on the dataset, which reuses the programs that these tests have compiled."""
    cache = f"--config.compilation_cache={jax.config.jax_compilation_cache_dir}"
    return [f"--config.data.datasets.0.path={dataset}", f"--config.save_dir={directory}", cache]


def test_a_run_starts_with_few_lines_and_ends_with_what_to_do_next(whole_run):
    done, directory = whole_run
    assert done.returncode == 0, done.stderr
    start, _, rest = done.stderr.partition("compiling the training step")
    assert len(start.splitlines()) <= 20
    for line in (
        rf"run +{directory}: 20 training steps; batch 4; a checkpoint every 5",
        r"set by flags +compilation_cache = \S+  \(file: none\)",
        r"data +\S+/libero_mini: 4 episodes, 455 steps, 2 tasks, checksum \w{16}; 455 steps "
        r"sampled \(100\.0%\)",
        r"truncated +to 16 tokens: pick up the black bowl",
        r"model +[\d,]+ parameters, [\d,]+ of them frozen; \d+ tokens: 16, then ",
        r"weights +random",
        r"devices +2 x cpu, mesh data 2 x fsdp 1",
        r"memory +device about .* GB .*; loader 7 batches x \d\.\d MB \+",
        rf"details +{directory}/description\.txt",
    ):
        assert re.search(line, start), line
    line = r"20/20 loss \d+\.\d+, \d+ samples/s, wait \d+\.\d% \(p99 \d+ ms\), \d.* [kM]B/s"
    assert re.search(line, rest)
    mean = np.mean([metrics.loss for metrics in read_metrics(directory)])
    assert f"reached  20 training steps; mean loss of the last 20: {mean:.3f}\n" in rest
    assert f"report   {directory}/report.html" in rest


def test_the_description_of_a_run_has_every_setting_and_table(whole_run):
    _, directory = whole_run
    text = (directory / "description.txt").read_text()
    for line in (
        r"^\* compilation_cache = ",
        r"^  model\.vggt\.num_tokens = 21$",
        r"^observation/vggt_tokens +float16\[4,2,21,64\]$",
        r"^ 5 readout_action           1   x  o  o  o  o",
        r"^octo_transformer/task_tokenizers_language",
    ):
        assert re.search(line, text, re.MULTILINE), line


def test_a_run_directory_explains_itself(whole_run, tiny_config):
    _, directory = whole_run
    check(dataclasses.replace(tiny_config, save_dir=str(directory)), resume=False, overwrite=True)
    names = {path.name for path in directory.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "datasets.json",
        "description.txt",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "views.png",
        "report.html",
    }
    checkpoints = {int(p.name) for p in (directory / "checkpoints").iterdir()}
    assert checkpoints == {10, 15, 20}
    (dataset,) = read_json(directory / "datasets.json", remedy="").values()
    assert dataset["conventions"]["image_orientation"] == "rotated_180"
    assert dataset["statistics"]["action"]["count"] == 455
    first = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
    assert list(first) == [
        "step",
        "loss",
        "grad_norm",
        "update_norm",
        "param_norm",
        "learning_rate",
        "applied",
        "step_s",
        "data_wait_s",
        "memory_gb",
        "batch_fingerprint",
        "checksum",
    ]


def test_ten_steps_and_a_resume_in_a_fresh_process_are_bitwise_identical_to_twenty(
    whole_run, tiny_config, tiny_config_path, mini_dataset, tmp_path
):
    run(Flags(dataclasses.replace(tiny_config, num_steps=10)))
    flags = flags_of(mini_dataset, tmp_path / "run")
    second = command(tiny_config_path, *flags, "--resume")
    assert second.returncode == 0, second.stderr
    assert "resumed at step 10" in second.stderr
    assert losses_and_fingerprints(tmp_path / "run") == losses_and_fingerprints(whole_run[1])
    for step in (10, 20):  # 10 ends the one run and is written beside steps of the other
        jax.tree.map(
            np.testing.assert_array_equal,
            saved_params(tmp_path / "run", step),
            saved_params(whole_run[1], step),
        )


@pytest.mark.slow
def test_steps_that_were_not_saved_are_taken_again(tiny_config):
    run(Flags(dataclasses.replace(tiny_config, num_steps=7)))
    whole = losses_and_fingerprints(tiny_config.save_dir)
    last = pathlib.Path(tiny_config.save_dir) / "checkpoints" / "7"
    last.rename(last.with_name("lost"))
    run(Flags(dataclasses.replace(tiny_config, num_steps=7), resume=True))
    assert losses_and_fingerprints(tiny_config.save_dir) == whole


def test_other_data_is_not_resumed_on(tiny_config, mini_dataset, tmp_path, reseal):
    run(Flags(dataclasses.replace(tiny_config, num_steps=1)))
    manifest = json.loads((mini_dataset / "dataset.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in mini_dataset.iterdir():
        (other / path.name).symlink_to(path)
    (other / "dataset.json").unlink()
    manifest["tasks"][0] = "wave"
    (other / "dataset.json").write_text(json.dumps(manifest))
    reseal(other)
    data = dataclasses.replace(tiny_config.data, datasets=(DatasetConfig(str(other)),))
    config = dataclasses.replace(tiny_config, data=data, num_steps=2)
    with pytest.raises(DataError, match=r"expected the mixture of this config; .*--new_mixture"):
        run(Flags(config, resume=True))
    run(Flags(config, resume=True, new_mixture=True))
    kept = kept_of_step(tiny_config.save_dir, 2, "loader")
    assert [change["position"] for change in kept["changes"]] == [1]


def test_tokens_of_another_encoder_are_not_resumed_on(tiny_config, mini_dataset, tmp_path):
    """Even with --new_mixture: a policy cannot read tokens that it has not learnt."""
    ours, theirs = (with_encoder(mini_dataset, tmp_path / name, digest=name) for name in "ab")
    config = replaced(tiny_config, ours, num_steps=1)
    run(Flags(config))
    config = replaced(tiny_config, theirs, num_steps=2)
    with pytest.raises(UserError, match="vggt_tokens: expected weights_digest a; found"):
        run(Flags(config, resume=True, new_mixture=True))


def with_encoder(dataset, directory, digest):
    """A copy of a dataset whose token column is declared as computed."""
    shutil.copytree(dataset, directory)
    spec = EncoderSpec("w", digest, "MIT", model=tiny(), layers=(1,), image_size=(56, 56))
    origin = TokenOrigin(spec, "image_primary", "all", "f16", 0.0)
    manifest = load_manifest(epath.Path(directory))
    column = Column("vggt_tokens", "step", (origin.feature("observation/vggt_tokens"),))
    shards = manifest.shards["vggt_tokens"]
    computed = with_column(manifest, column, shards, "MIT", {column.features[0].key: origin})
    (directory / "dataset.json").write_text(computed.dumps())
    return directory


def test_corrupt_record_ends_the_run_which_continues_without_it(
    tiny_config, mini_dataset, tmp_path
):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(mini_dataset, spoiled)
    path = spoiled / "steps" / "00000-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1  # of a record that the ninth batch reads
    path.write_bytes(data)
    config = replaced(tiny_config, spoiled, num_steps=20, save_interval=100)
    with pytest.raises(UserError, match=r"saved at step \d+: continue with --resume") as caught:
        run(Flags(config))
    message = str(caught.value)
    assert re.search(r"steps/00000-of-00002.arrayrecord, record \d+: expected a readable", message)
    at = int(re.search(r"saved at step (\d+)", message).group(1))
    record = re.search(r"--config.data.datasets.0.excluded (\S+)$", message).group(1)
    assert kept_of_step(config.save_dir, at, "loader")["position"] == at
    assert [row.step for row in read_metrics(pathlib.Path(config.save_dir))] == [*range(1, at + 1)]

    with pytest.raises(UserError, match=rf"saved at step {at}: continue with"):
        run(Flags(config, resume=True))  # nothing has been fixed
    excluding = replaced(config, spoiled, excluded=(record,))
    run(Flags(excluding, resume=True))
    rows = losses_and_fingerprints(config.save_dir)
    assert [step for step, *_ in rows] == [*range(1, 21)]
    (change,) = kept_of_step(config.save_dir, 20, "loader")["changes"]
    assert (change["position"], change["before"][0]["excluded"]) == (at, [])

    # Every batch that does not read the record is the same as in a run on the intact dataset.
    sound = replaced(config, mini_dataset, save_dir=str(tmp_path / "sound"))
    run(Flags(sound))
    expected = losses_and_fingerprints(sound.save_dir)
    assert rows[:at] == expected[:at]
    assert rows[at][2] != expected[at][2]
    later = [(a[2], b[2]) for a, b in zip(rows[at + 1 :], expected[at + 1 :], strict=True)]
    assert sum(a == b for a, b in later) >= len(later) - 2

    with pytest.raises(
        DataError, match=f"Exclude them again: --config.data.datasets.0.excluded {record}"
    ):
        run(Flags(dataclasses.replace(config, num_steps=21), resume=True))


@pytest.mark.parametrize("num_batches", [pytest.param(1, marks=pytest.mark.slow), 32])
def test_a_corrupt_record_of_a_held_out_episode_leaves_a_complete_run(
    tiny_config, mini_dataset, tmp_path, num_batches, caplog, monkeypatch
):
    """With one batch the validation misses it, but the report's episode reads it."""
    spoiled = tmp_path / "spoiled"
    shutil.copytree(mini_dataset, spoiled)
    config = replaced(tiny_config, spoiled, num_steps=2, save_interval=100)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, validation_fraction=0.3),
        validation=ValidationConfig(interval=100, num_batches=num_batches),
    )
    data = dataclasses.replace(config.data, split="validation")
    dataset = open_dataset(str(spoiled))
    steps = select(dataset, data.datasets[0], data).example()
    shard, record = divmod(int(steps[-1]), dataset.manifest.shards["steps"][0].records)
    path = spoiled / dataset.manifest.shards["steps"][shard].file
    content = path.read_bytes()
    image = dataset.columns["steps"].read(int(steps[-1]))["observation/image_primary"]
    at = content.index(image) + len(image) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])

    name = rf"{shard:05}-of-00002.arrayrecord"
    lacking = "its last validation|the chunks of an episode" if num_batches > 1 else "the chunks"
    message = rf"the run is complete, but ({lacking}).*steps/{name}, record {record}: "
    directory = run(Flags(config))
    assert re.search(message, caplog.text)
    assert "episode.npz is missing" in (directory / "report.html").read_text()
    with pytest.raises(UserError, match=r"found one of 2\. It is complete"):
        run(Flags(config, resume=True))
    excluded = re.findall(r"(--config.data.datasets.0.excluded) (\S+)$", caplog.text, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["report", str(directory), *excluded[0]])
    write_report()
    assert "episode.npz is missing" not in (directory / "report.html").read_text()
    assert [one.step for one in read_validation(directory)] == [2]
    episode = read_episode(directory)
    assert episode is not None
    assert len(episode.actions) < len(steps)  # or another episode


def test_flags_that_exclude_a_record_name_every_part_that_reads_it(tiny_config):
    error = RecordError(
        where="w", expected="e", found="f", remedy="Fix it.", dataset="data/a", record="steps/x:3"
    )
    parts = (
        DatasetConfig("data/b"),
        DatasetConfig("data/a", episodes=(0, 2), excluded=("steps/x:1",)),
        DatasetConfig("data/a", episodes=(2, 4), excluded=("steps/x:3",)),
    )
    data = dataclasses.replace(tiny_config.data, datasets=parts)
    extended = excludable(error, dataclasses.replace(tiny_config, data=data))
    assert extended.remedy == (
        "Fix it. To continue without that record, add "
        "--config.data.datasets.1.excluded steps/x:1 steps/x:3 "
        "--config.data.datasets.2.excluded steps/x:3"
    )


def replaced(config, dataset, *, excluded=(), **changes):
    """A config of another dataset, with other fields."""
    part = DatasetConfig(str(dataset), excluded=excluded)
    data = dataclasses.replace(config.data, datasets=(part,))
    return dataclasses.replace(config, data=data, **changes)


def kept_of_step(directory, step, item):
    """The JSON that a checkpoint keeps."""
    path = pathlib.Path(directory) / "checkpoints" / str(step) / item / "metadata"
    return json.loads(path.read_text())


def test_a_checkpoint_has_the_statistics_that_its_policy_needs(whole_run):
    _, directory = whole_run
    kept = kept_of_step(directory, 20, "datasets")
    assert kept == read_json(directory / "datasets.json", remedy="")
    (dataset,) = kept.values()
    assert dataset["normalization"] == "normal"
    assert len(dataset["statistics"]["action"]["mean"]) == 7


def test_a_run_is_exported_to_the_layout_of_the_original(tmp_path, mini_dataset):
    config = load_config(f"{TINY_CONFIG}:untokened")
    config = dataclasses.replace(config, save_dir=str(tmp_path / "run"))
    write_checkpoints(replaced(config, mini_dataset), (2, 3))
    t5 = ("--language_encoder", "t5_tiny")
    done = export(tmp_path / "run", tmp_path / "octo", *t5)
    assert done.returncode == 0, done.stderr
    assert f"octo checkpoint: {tmp_path / 'octo'}, step 3" in done.stdout
    statistics = json.loads((tmp_path / "octo" / "dataset_statistics.json").read_text())
    assert set(statistics) == {"action", "num_trajectories", "num_transitions", "proprio"}
    assert statistics["action"]["mask"] == [True] * 6 + [False]
    # The exported model is loaded into a model of its own kind, whose size it determines.
    loaded = OctoCheckpoint(str(tmp_path / "octo"), 3).load()
    expected = saved_params(tmp_path / "run", 3)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert loaded.config.images == config.model.images

    assert export(tmp_path / "run", tmp_path / "octo", *t5).returncode == 2
    other = export(tmp_path / "run", tmp_path / "other", "--step", "7")
    assert re.search(r"expected a checkpoint of step 7; found the steps \[2, 3\]", other.stderr)
    nowhere = export(tmp_path / "none", tmp_path / "other")
    assert (
        "expected the directory of a run, with checkpoints; found no such directory"
        in nowhere.stderr
    )


def export(*arguments):
    return Command("train.checkpoints.export_run", *arguments).wait()


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another(tiny_config, mini_dataset, tmp_path, caplog):
    run(Flags(replaced(tiny_config, mini_dataset, num_steps=2)))
    later = replaced(
        tiny_config,
        mini_dataset,
        num_steps=1,
        save_dir=str(tmp_path / "later"),
        pretrained_path=tiny_config.save_dir,
        pretrained_step=2,
    )
    with caplog.at_level("INFO"):
        run(Flags(later))
    rows = json.loads((tmp_path / "later" / "load_report.json").read_text())["rows"]
    assert {row["status"] for row in rows} == {"loaded"}
    # The first training step's learning rate is 0: the saved parameters are the loaded ones.
    jax.tree.map(
        np.testing.assert_array_equal,
        saved_params(later.save_dir, 1),
        saved_params(tiny_config.save_dir, 2),
    )
    with pytest.raises(UserError, match=r"a checkpoint of step 9; found the steps \[2\]"):
        run(Flags(dataclasses.replace(later, pretrained_step=9), overwrite=True))


def test_a_memory_budget_that_is_too_small_is_reported_before_anything_is_made(tiny_config):
    data = dataclasses.replace(tiny_config.data, ram_budget_gb=0.001)
    with pytest.raises(UserError, match=r"ram_budget_gb 0.001: expected at least 0.0\d+"):
        run(Flags(dataclasses.replace(tiny_config, data=data)))
    assert not pathlib.Path(tiny_config.save_dir).exists()


@pytest.mark.slow
def test_a_run_with_goal_images_trains(mini_dataset, tmp_path):
    config = load_config(f"{TINY_CONFIG}:untokened")
    data = dataclasses.replace(config.data, conditioning="multimodal")
    config = dataclasses.replace(config, data=data, save_dir=str(tmp_path / "run"))
    config = replaced(config, mini_dataset, num_steps=2)
    run(Flags(config))
    assert len(read_metrics(tmp_path / "run")) == 2


@pytest.mark.slow
def test_a_run_that_reads_tokens_of_the_current_step_alone_trains(tiny_config):
    data = dataclasses.replace(tiny_config.data, current_only=("vggt_tokens",))
    run(Flags(dataclasses.replace(tiny_config, data=data, num_steps=2)))
    assert len(read_metrics(pathlib.Path(tiny_config.save_dir))) == 2


def test_a_run_without_any_checkpoint_is_resumed_at_its_start(tiny_config, caplog):
    run(Flags(dataclasses.replace(tiny_config, num_steps=2)))
    whole = losses_and_fingerprints(tiny_config.save_dir)
    step = pathlib.Path(tiny_config.save_dir) / "checkpoints" / "2"
    step.rename(step.with_name("lost"))
    run(Flags(dataclasses.replace(tiny_config, num_steps=2), resume=True))
    assert "has no checkpoint yet: the run starts from scratch" in caplog.text
    assert losses_and_fingerprints(tiny_config.save_dir) == whole


def test_pretrained_weights_start_the_run_and_are_accounted_for(tiny_config, caplog, monkeypatch):
    weights = ROOT / "tests" / "data" / "golden" / "octo" / "ckpt_tiny"
    images = tuple(
        ImageTokenizerConfig(name, f"image_{name}", size, (32, 32, 64, 64), stem_dim=64)
        for name, size in (("primary", 64), ("wrist", 32))
    )
    t5 = T5Config(vocab_size=200, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2)
    config = dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(
            tiny_config.data, observations=("image_primary", "image_wrist", "vggt_tokens")
        ),
        model=dataclasses.replace(
            demo(vggt=tiny_config.model.vggt), images=images, language=LanguageConfig(t5=t5)
        ),
        pretrained_path=str(weights),
        pretrained_step=100,
        num_steps=1,
    )
    with pytest.raises(UserError, match="octo_transformer/obs_vggt_pos_embedding: new"):
        run(Flags(config))
    assert not pathlib.Path(config.save_dir).exists()  # nothing was begun

    monkeypatch.setattr(Setup, "compile", idle_step)
    monkeypatch.setattr("train.run_setup.fresh_state", random_first_state)
    with caplog.at_level("INFO"):
        run(Flags(dataclasses.replace(config, pretrained_differs=("octo_transformer/*vggt*",))))
    assert "126 loaded" in caplog.text
    rows = json.loads((pathlib.Path(config.save_dir) / "load_report.json").read_text())["rows"]
    new = {row["path"] for row in rows if row["status"] != "loaded"}
    assert new == {
        "octo_transformer/obs_vggt_pos_embedding",
        "octo_transformer/obs_vggt_projection/bias",
        "octo_transformer/obs_vggt_projection/kernel",
        "octo_transformer/observation_tokenizers_vggt/LayerNorm_0/bias",
        "octo_transformer/observation_tokenizers_vggt/LayerNorm_0/scale",
    }
    pretrained = OctoCheckpoint(str(weights), 100).load()
    jax.tree.map(
        np.testing.assert_array_equal,
        saved_params(config.save_dir, 1)["octo_transformer"]["task_tokenizers_language"],
        pretrained.params["octo_transformer"]["task_tokenizers_language"],
    )


def random_first_state(init, shardings):
    """A first state that no program is compiled for."""
    return jax.device_put(random_state(init.args[0]), shardings)


def huge_first_state(init, shardings):
    """The same with parameters whose products overflow float32."""
    state = random_state(init.args[0])
    huge = jax.tree.map(lambda leaf: leaf * np.float32(1e25), state.params)
    return jax.device_put(dataclasses.replace(state, params=huge), shardings)


def idle_step(setup):
    """A step that trains nothing, for runs whose weights alone are looked at."""
    names = ("loss", "grad_norm", "update_norm", "param_norm", "learning_rate", "applied")

    def step(state, batch, table):
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == setup.shardings
        return dataclasses.replace(state, step=state.step + 1), {
            name: jnp.ones((), jnp.float32) for name in names
        }

    return step


@pytest.mark.parametrize("name", ["configs/libero_vggt.py", "configs/libero.py"])
def test_without_data_or_network_one_message_names_all_that_is_missing(name, tmp_path):
    done = command(name, env={"HF_HUB_CACHE": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "3 that cannot be used" in done.stderr
    suites = [f"libero_{suite}" for suite in ("spatial", "object", "goal", "10")]
    paths = ", ".join(f"data/{suite}" for suite in suites)
    missing = f"expected 4 dataset directories; found 0, without {paths}. Get them"
    assert missing in done.stderr
    for suite in suites:
        assert f"--local-dir data/rlds --include '{suite}_no_noops/*'\n" in done.stderr
        convert = f"octograin convert data/rlds/{suite}_no_noops data/{suite}\n"
        assert convert in done.stderr
    assert "hf download google-t5/t5-base spiece.model" in done.stderr
    weights = "hf download rail-berkeley/octo-small-1.5 config.json 300000/default/checkpoint"
    assert weights in done.stderr


def test_a_users_mistake_shows_its_traceback_with_debug_only(tiny_config_path, tmp_path):
    flags = [f"--config.data.datasets.0.path={tmp_path}/none"]
    assert "Traceback" not in command(tiny_config_path, *flags).stderr
    assert "Traceback" in command(tiny_config_path, *flags, "--debug").stderr


def test_updates_that_are_not_finite_are_skipped_and_then_end_the_run(
    tiny_config, caplog, monkeypatch
):
    # Huge parameters overflow the loss; with a limit of 2 the third skip ends the run.
    monkeypatch.setattr("train.run_setup.fresh_state", huge_first_state)
    optimizer = dataclasses.replace(tiny_config.optimizer, max_skipped=2)
    config = dataclasses.replace(tiny_config, optimizer=optimizer, save_interval=1)
    message = r"step \d+, batch .*: expected a finite loss .* after 2 skipped updates in a row"
    with pytest.raises(UserError, match=message):
        run(Flags(config))
    directory = pathlib.Path(config.save_dir)
    skipped = [row for row in read_metrics(directory) if not row.applied]
    assert len(skipped) == 3
    assert [row.step for row in skipped] == list(range(skipped[0].step, skipped[0].step + 3))
    assert "its update is skipped; the batch is finite, and is in" in caplog.text
    with np.load(directory / "skipped" / f"step_{skipped[0].step}_process_0.npz") as arrays:
        assert arrays["action"].shape == (4, 2, 4, 7)
    # The saved state after the skipped updates equals the state before them.
    before, after = (saved_params(directory, skipped[n].step) for n in (0, 2))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_skips_that_end_a_run_leave_a_line_of_every_step_that_is_saved(tiny_config):
    optimizer = dataclasses.replace(
        tiny_config.optimizer, learning_rate=1e30, clip_norm=None, max_skipped=0
    )
    config = dataclasses.replace(tiny_config, optimizer=optimizer, save_interval=1000)
    with pytest.raises(
        UserError, match=r"after 0 skipped updates in a row.*The run is saved at step"
    ):
        run(Flags(config))
    directory = pathlib.Path(config.save_dir)
    steps = [row.step for row in read_metrics(directory)]
    assert steps == list(range(1, last_step(directory) + 1))


def test_leave_for_another_mixture_goes_with_a_resume(tiny_config):
    with pytest.raises(UserError, match="expected --new_mixture with --resume; found it alone"):
        run(Flags(tiny_config, new_mixture=True))


def test_a_complete_run_is_not_resumed(whole_run, tiny_config):
    complete = dataclasses.replace(tiny_config, save_dir=str(whole_run[1]))
    message = r"a run of fewer than 20 steps; found one of 20\. It is complete"
    with pytest.raises(UserError, match=message):
        run(Flags(complete, resume=True))


def test_a_model_that_does_not_fit_the_data_is_reported_before_a_run_is_deleted(tiny_config):
    kept = pathlib.Path(tiny_config.save_dir) / "config.json"
    with claimed(tiny_config, resume=False, overwrite=False):
        pass
    before = kept.read_bytes()
    vggt = dataclasses.replace(tiny_config.model.vggt, num_tokens=261)
    config = dataclasses.replace(
        tiny_config, model=dataclasses.replace(tiny_config.model, vggt=vggt)
    )
    with pytest.raises(UserError, match=r"observation/vggt_tokens: expected .*\(b w 261 64\)"):
        run(Flags(config, overwrite=True))
    assert kept.read_bytes() == before
