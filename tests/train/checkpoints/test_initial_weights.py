import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, UserError
from train.checkpoints.initial_weights import load_checked, load_pretrained
from train.octo.octo_config import demo
from train.octo.released.weight_loading import Pretrained

CHECKPOINT = pathlib.Path(__file__).parents[2] / "data" / "golden" / "octo" / "ckpt_tiny"


@dataclasses.dataclass(frozen=True)
class Returned:
    """A source of weights of one's own, which returns what it is given."""

    value: Any

    def load(self) -> Any:
        return self.value


def test_weights_of_ones_own_source_are_checked():
    loaded = Pretrained(demo(), {"heads_action": {"kernel": np.ones(2, np.float32)}})
    assert load_checked(Returned(loaded), "Returned") is loaded
    with pytest.raises(UserError, match=r"Returned, load: expected a Pretrained, .*; found dict\."):
        load_checked(Returned({}), "Returned")
    infinite = dataclasses.replace(loaded, params={"head": {"bias": np.full(2, np.inf)}})
    with pytest.raises(DataError, match=r"Returned: .* such as head/bias: has values that are NaN"):
        load_checked(Returned(infinite), "Returned")


def test_the_last_step_of_a_directory_is_taken_where_none_is_named():
    last = load_pretrained(str(CHECKPOINT))
    named = load_pretrained(str(CHECKPOINT), 100)
    assert last.config == named.config
    assert last.params.keys() == named.params.keys() == {"octo_transformer", "heads_action"}


def test_a_step_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match=r"ckpt_tiny: expected step 7; found the steps \[100\]"):
        load_pretrained(str(CHECKPOINT), 7)


def test_a_directory_without_any_step_says_so(tmp_path):
    (tmp_path / "config.json").write_bytes((CHECKPOINT / "config.json").read_bytes())
    with pytest.raises(UserError, match="expected a training step; found no step at all"):
        load_pretrained(str(tmp_path))


def test_on_the_hub_the_step_must_be_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    with pytest.raises(UserError, match=r"hf://owner/name: expected the training step.*300000"):
        load_pretrained("hf://owner/name")


@pytest.mark.parametrize("path", ["gs://bucket/octo", "s3://bucket/octo", "https://host/octo"])
def test_a_store_that_is_not_read_from_is_reported(path):
    scheme = path.partition("://")[0]
    message = rf"{path}: expected a local directory or hf://owner/name; found {scheme}://\."
    with pytest.raises(UserError, match=message):
        load_pretrained(path)


def test_a_folder_of_the_hubs_cache_is_reported_with_its_name_on_the_hub(tmp_path):
    folder = tmp_path / "models--owner--name"
    folder.mkdir()
    with pytest.raises(UserError, match="write hf://owner/name"):
        load_pretrained(str(folder), 100)


@pytest.mark.parametrize("folder", ["100", "100/default"])
def test_the_folder_of_a_step_is_reported_with_the_checkpoints(folder):
    with pytest.raises(UserError, match=f"Give {CHECKPOINT}, with pretrained_step 100"):
        load_pretrained(str(CHECKPOINT / folder))


def test_without_a_network_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"hf://owner/name, .*hf download owner/name config.json"):
        load_pretrained("hf://owner/name", 100)
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(snapshot.name)
    snapshot.parent.mkdir()
    snapshot.symlink_to(CHECKPOINT)
    assert load_pretrained("hf://owner/name", 100).config == load_pretrained(str(CHECKPOINT)).config
