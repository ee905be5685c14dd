"""A run whose config has classes of a user's own file, in every command that reads the run."""

import contextlib
import hashlib
import importlib
import json
import pathlib
import sys

import pytest

from pipeline.errors import DataError, UserError
from pipeline.parts.part_copies import own_files
from tests.own_modules import forget_modules
from train.checkpoints.checkpoint_store import read_checkpoint
from train.checkpoints.initial_weights import RunCheckpoint
from train.checkpoints.run_directory import read_config
from train.end_of_run import describe_end
from train.flags import parse_flags
from train.policy import parity
from train.run import run

MY_PARTS = '''
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shift:
    """Adds a constant to the proprioception."""

    by: float = 0.5

    def spec_after(self, spec):
        return spec

    def apply(self, batch, spec, draws):
        key = "observation/proprio"
        return batch | {key: batch[key] + np.float32(self.by)}


@dataclasses.dataclass(frozen=True)
class Scale:
    """Scales the actions by a power of 2, which is exact."""

    factor: float = 2.0

    def spec_after(self, spec):
        return spec

    def apply(self, batch, spec, draws):
        return batch | {"action": batch["action"] * np.float32(self.factor)}

    def invert(self, action, batch, spec):
        return action / np.float32(self.factor)
'''
CHECKSUM = hashlib.sha256(MY_PARTS.encode()).hexdigest()


@pytest.fixture
def project(tiny_config_path, mini_dataset, tmp_path):
    """A folder with a config file and, beside it, the file of the classes that it imports."""
    (tmp_path / "my_parts.py").write_text(MY_PARTS)
    (tmp_path / "mine.py").write_text(
        "import dataclasses, octograin\nfrom my_parts import Scale, Shift\n"
        f"tiny = octograin.load_config('{tiny_config_path}:shallow')\n"
        f"datasets = (octograin.DatasetConfig({str(mini_dataset)!r}),)\n"
        "data = dataclasses.replace(\n"
        "    tiny.data, datasets=datasets, transforms=(Shift(0.25), Scale())\n"
        ")\n"
        f"save_dir = {str(tmp_path / 'run')!r}\n"
        "VARIANTS = {'default': dataclasses.replace(tiny, data=data, save_dir=save_dir)}\n"
    )
    yield tmp_path
    forget_modules(tmp_path)


def test_a_run_with_transforms_of_a_users_file(project, monkeypatch, capsys):
    config = ["--config", str(project / "mine.py"), "--config.data.transforms.0.by=0.125"]
    directory = run(parse_flags([*config, "--config.num_steps=1"]))
    check_the_end(directory, project)
    assert "\n* data.transforms.0.by = 0.125  (file: 0.25)\n" in (
        (directory / "description.txt").read_text()
    )
    (copy,) = (directory / "parts").iterdir()
    assert (copy.name, copy.read_text()) == (f"my_parts.{CHECKSUM[:8]}.py.txt", MY_PARTS)
    shift, scale = json.loads((directory / "config.json").read_text())["data"]["transforms"]
    assert shift == {
        "part": "Shift",
        "module": "my_parts",
        "file": "my_parts.py",
        "checksum": CHECKSUM,
        "fields": {"by": 0.125},
    }
    assert (scale["part"], scale["fields"]) == ("Scale", {"factor": 2.0})

    # Another process has to be given the file.
    forget_modules(project)
    missing = r"data\.transforms \(1st, Shift\): no class Shift of my_parts\.py\n.*\n"
    with pytest.raises(DataError, match=missing + r"Give the file: --parts my_parts\.py; in Pytho"):
        read_checkpoint(directory)
    check_nothing_is_executed(directory, monkeypatch)
    monkeypatch.setattr(
        sys, "argv", ["parity", str(directory), "--parts", str(project / "my_parts.py")]
    )
    with pytest.raises(SystemExit) as ended:
        parity.main()
    shown = capsys.readouterr()
    assert (ended.value.code, "bitwise identical" in shown.out) == (0, True)
    assert "has changed" not in shown.err

    # A resumed run finds the classes in its config; a changed source is a warning.
    forget_modules(project)
    (project / "my_parts.py").write_text(MY_PARTS + "# edited\n")
    run(parse_flags([*config, "--config.num_steps=2", "--resume"]))
    # A command prints it without the name of a logger.
    changed = [text for text in capsys.readouterr().err.splitlines() if "has changed" in text]
    assert [text.partition(" (SHA")[0] for text in changed] == [
        f"part {name}: the source my_parts.py has changed since it was recorded"
        for name in ("Shift", "Scale")
    ]
    assert len(list((directory / "parts").iterdir())) == 2

    # Other fields are another config.
    with pytest.raises(UserError, match=r"data\.transforms: .*0.125.* then, .*0.25.* now"):
        run(parse_flags([*config[:2], "--config.num_steps=3", "--resume"]))


def check_the_end(directory, project):
    """Checks which commands the end of a run suggests, and with which files."""
    config = read_config(directory)
    end = describe_end(directory, own_files(config))
    assert f"add --parts {project / 'my_parts.py'} where they cannot import your classes" in end
    with contextlib.chdir(project):
        assert own_files(config) == ["my_parts.py"]
    # The simulator has LIBERO's scenes alone.
    assert f"octograin evaluate {directory}   rolls it out in the LIBERO simulator" in end
    path = directory / "datasets.json"
    stored = path.read_text()
    (values,) = (v for v in json.loads(stored).values() if isinstance(v, dict))
    path.write_text(json.dumps({"data/mine": {**values, "name": "my_robot"}}))
    assert "octograin evaluate" not in describe_end(directory)
    path.write_text(stored)


def check_nothing_is_executed(directory, monkeypatch):
    """Reads a run in every way, with hostile modules in it that its records name."""
    canary = directory.parent / "canary"
    hostile = [directory / name for name in ("my_parts.py", "__init__.py", "checkpoints/x.py")]
    for file in hostile:
        file.write_text(f"open({str(canary)!r}, 'w').close()\n{MY_PARTS}")
    with monkeypatch.context() as patch:
        patch.chdir(directory)
        for entry in (str(directory), ""):
            patch.syspath_prepend(entry)
        # The config that a resume reads, that of a checkpoint, and that of weights to start from.
        for read in (read_config, read_checkpoint, RunCheckpoint.load):
            named = directory if read is read_checkpoint else pathlib.Path()
            with pytest.raises(DataError, match="no class Shift of my_parts"):
                read(RunCheckpoint(named) if read is RunCheckpoint.load else named)
    assert not canary.exists()
    for file in hostile:
        file.unlink()


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train.run", ["--config", "libero_vggt:demo"]),
        ("train.serve.__main__", ["none"]),
        ("train.evaluate.evaluate_command", ["none"]),
        ("train.policy.parity", ["none"]),
        ("train.report.__main__", ["none"]),
        ("train.checkpoints.export_run", ["none", "dst"]),
    ],
)
def test_every_command_that_reads_a_run_takes_parts(command, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", *arguments, "--parts", "json", "--parts", "a.py"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(command).main()
    error = "error: --parts a.py: expected a Python file that ends in .py, or the name of a module"
    assert (ended.value.code, capsys.readouterr().err.startswith(error)) == (2, True)
