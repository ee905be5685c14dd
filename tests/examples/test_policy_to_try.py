"""The policy in examples/policy: it is small, opens, and acts."""

import json
import pathlib
import tomllib

import numpy as np

from train.checkpoints.checkpoint_store import read_checkpoint
from train.checkpoints.relative_paths import absolute_paths
from train.policy import Policy

ROOT = pathlib.Path(__file__).parents[2]
POLICY = ROOT / "examples" / "policy"
MOST_BYTES = 8_000_000


def test_it_has_few_small_files_without_paths_of_a_machine():
    (checkpoint,) = (POLICY / "checkpoints").iterdir()
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in files:
        assert path.name != "metadata" or absolute_paths(json.loads(path.read_text())) == []


def test_it_answers_an_observation():
    policy = Policy(read_checkpoint(POLICY))
    policy.reset(0, "pick up the black bowl")
    chunk = policy.infer({0: policy.example_observation()})[0]
    assert chunk.shape == (8, 7)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()


def test_a_wheel_does_not_pack_it():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert packed
    assert not [path for path in packed if path.split("/")[0] in ("", ".", "examples")]
