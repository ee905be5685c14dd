"""The command `octograin`: its verbs, what they run, and what is misused."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import octograin
from octograin import cli
from tests.command_line import call

ROOT = pathlib.Path(__file__).parents[2]


def test_every_verb_has_a_line_of_help_and_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    assert re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE) == list(cli.VERBS)
    modules = [module for module, _ in cli.VERBS.values() if module]
    modules += [*cli.FORMATS.values(), *cli.HUB.values()]
    for module in modules:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert "\ndef main() -> None:" in source


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"octograin {octograin.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["convert"], "octograin convert [-h] [OPTIONS] SRC [DST]"),
        (["tokens"], "octograin tokens [-h] [OPTIONS] DATASET"),
        (["edit"], "octograin edit [-h]"),
        (["verify"], "octograin verify [-h] SRC [DST]"),
        (["inspect"], "octograin inspect [-h] [OPTIONS] DST"),
        (["export"], "octograin export SOURCE [OUT] --to {rlds,lerobot,octo,stablehlo,policy}"),
        (["export", "--to", "rlds"], "octograin export --to rlds [-h] DST [OUT]"),
        (["export", "--to", "lerobot"], "octograin export --to lerobot [-h] [OPTIONS] DST [OUT]"),
        (["export", "--to=octo"], "octograin export --to octo [-h] RUN DST"),
        (["export", "--to=policy"], "octograin export --to policy [-h] [OPTIONS] RUN DST"),
        (["train"], "octograin train [-h] "),
        (["demo"], "octograin demo [-h] [--num_steps NUM_STEPS] [dir]"),
    ],
)
def test_a_verb_calls_itself_by_its_name(
    arguments: list[str],
    usage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments, "--help") in (0, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {usage}")
    # As in the documentation, and as the fields of a config are spelled.
    assert not re.findall(r"--\w+-\w+", printed)


_HELP = """
import contextlib, sys
sys.argv = ["octograin", "train", *sys.argv[1:], "--help"]
from octograin.cli import main
with contextlib.suppress(SystemExit):
    main()
print("imported:", *sorted({"jax", "flax", "grain", "matplotlib"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("arguments", [[], ["--config", "configs/libero_vggt.py"]])
def test_the_help_of_a_run_imports_nothing_of_it(arguments: list[str]) -> None:
    command = [sys.executable, "-c", _HELP, *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert printed.startswith("usage: octograin train")
    assert printed.endswith("imported:\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], "error: octograin: .*; found convrt. Did you mean `octograin convert`?"),
        (["fly"], "error: octograin: .*; found fly. See `octograin --help`."),
        (["export", "src", "out"], "octograin export: error: .* required: --to"),
        (["export", "src", "out", "--to", "hdf"], "octograin export: error: .*'hdf'"),
        (["inspect", "gone"], "error: gone.*expected"),
    ],
)
def test_a_mistake_ends_with_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_wheel_takes_presets_and_data_from_where_they_lie() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"octograin": "octograin.cli:main"}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert all((ROOT / path).exists() for path in wheel["only-include"])
    assert wheel["sources"] == {"configs": "octograin/presets", "tests/data": "octograin/data"}
