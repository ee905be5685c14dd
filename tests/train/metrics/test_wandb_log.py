import dataclasses
import pathlib

import pytest

from pipeline.errors import UserError
from train.flags import Flags
from train.metrics.wandb_log import Tracking
from train.run import run
from train.train_config import WandbConfig

wandb = pytest.importorskip("wandb")


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = WandbConfig(project="octograin-test", group="a group", mode="offline")
    return dataclasses.replace(tiny_config, wandb=offline, name="a name", num_steps=2)


@pytest.mark.filterwarnings("ignore")  # of wandb's own service
@pytest.mark.slow
def test_an_offline_run_is_written_and_resumed_in_its_own_run(config):
    run(Flags(config))
    directory = pathlib.Path(config.save_dir)
    first = (directory / "wandb_id.txt").read_text()
    files = list((directory / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{first}.wandb"]
    assert files[0].stat().st_size > 1000
    run(Flags(dataclasses.replace(config, num_steps=3), resume=True))
    assert (directory / "wandb_id.txt").read_text() == first


@pytest.mark.filterwarnings("ignore")
def test_numbers_and_names_are_sent(config, tmp_path, monkeypatch):
    tracking = Tracking(config, tmp_path)
    sent = tracking._run
    assert (sent.project, sent.group, sent.name) == ("octograin-test", "a group", "a name")
    assert sent.config["model"]["embedding_dim"] == 32
    logged = []
    monkeypatch.setattr(sent, "log", lambda values, step: logged.append((step, values)))
    tracking.write(7, {"train/loss": 0.5})
    assert logged == [(7, {"train/loss": 0.5, "step": 7})]
    tracking.close()


def test_a_service_that_cannot_be_reached_is_named(config, tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"found no route to host. .*--config.wandb.mode=offline"):
        Tracking(config, tmp_path)


def test_without_the_package_the_extra_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package wandb; .*-e '\.\[wandb\]'"):
        Tracking(config, tmp_path)
