"""The ten commands of docs/hub.md, from a LeRobot set on a hub of this machine to a server."""

import functools
import os
import pathlib
import re
import shlex
import signal
import urllib.request

import pytest

from pipeline.data.dataset import open_dataset
from tests.hub_server import WRITER, HubServer
from tests.processes import Command
from train.policy.policy import read_run

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "hub.md"
EDITS = {
    '"upright"': '"rotated_180"',
    "gripper_open = 1.0": "gripper_open = -1.0",
    "gripper_close = 0.0": "gripper_close = 1.0",
    'key = "observation/images/wrist"': 'key = "observation/image_wrist"',
}
"""What the page says of the lines marked CHECK."""
FEWER = [f"--config.{name}" for name in ("num_steps=20", "optimizer.warmup_steps=2")]
FEWER += ["--config.optimizer.decay_steps=20", "--config.save_interval=20"]
"""A tenth of the training steps: their number is all that the test changes."""


def commands() -> list[list[str]]:
    """The words of each command of the page's first block."""
    section = PAGE.read_text().partition("ten commands\n")[2]
    found = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return [shlex.split(line) for line in found[1].splitlines()]


def test_there_are_ten() -> None:
    verbs = [words[1] for words in commands()]
    of_hf = ["auth"]
    assert verbs == [
        *("convert", "convert", "inspect", "tokens", "train"),
        *(*of_hf, "push", "pull", "parity", "serve"),
    ]


@pytest.mark.slow
def test_a_newcomer_gets_from_a_set_on_the_hub_to_a_server(
    hub: HubServer,
    mini_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*words: object) -> Command:
        return Command("octograin.cli", *words, before=functools.partial(os.chdir, tmp_path))

    exported = tmp_path / "exported"
    start("export", mini_dataset, exported, "--to", "lerobot", "--image").finish()
    hub.dataset("alice/libero_mini").commit_folder(exported)
    describe, convert, inspect, tokens, train, log_in, push, pull, parity, serve = commands()

    *words, arrow, mapping = describe[1:]
    assert (arrow, log_in) == (">", ["hf", "auth", "login"])
    text = start(*words).finish().stdout
    for before, after in EDITS.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    (tmp_path / mapping).write_text(text)
    for words in (convert, inspect, tokens, [*train, *FEWER]):
        start(*words[1:]).finish()
    assert open_dataset(str(tmp_path / "data" / "mini")).num_steps == 455
    assert (tmp_path / "mini.png").stat().st_size > 10_000

    monkeypatch.setenv("HF_TOKEN", WRITER)
    start(*push[1:]).finish()
    monkeypatch.delenv("HF_TOKEN")
    start(*pull[1:]).finish()
    assert read_run(tmp_path / "elsewhere" / "mini").step == 20
    assert "bitwise identical: " in start(*parity[1:]).finish().stdout
    assert (serve[-2], serve[-1]) == ("--port", "8000")
    server = start(*serve[1:-1], "0")
    commit = hub.repositories["models", "alice/mini"].refs["main"]
    said = rf"serving hf://alice/mini@{commit} at ws://127\.0\.0\.1:(\d+)\n"
    server.wait_until(lambda: re.search(said, server.stderr) is not None, 0.1)
    found = re.search(said, server.stderr)
    assert found is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/healthz") as answer:
        assert answer.status == 200
    server.send_signal(signal.SIGINT)
    server.finish(130)
