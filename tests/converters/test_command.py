import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.dataset import open_dataset
from tests.processes import Command

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> Command:
    return Command("converters.rlds", *arguments).wait()


def test_a_conversion_ends_with_a_summary(mini_rlds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "converters.rlds", mini_rlds, out]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    # What becomes what is printed before the job, and the summary after it.
    table, _, summary = result.stdout.partition("\n\n")
    assert table.splitlines()[0].split() == ["action", "float32[7]", "steps/action"]
    lines = summary.splitlines()
    assert lines[0].startswith("4 episodes, 455 steps, 2 tasks in ")
    assert [line.partition(":")[0] for line in lines[1:] if line[0] != " "] == [
        "images checked",
        "episodes",
        "steps",
        "vggt_tokens",
        "source",
        "dataset",
    ]
    assert lines[-2].endswith(", RLDS")
    assert lines[-3] == "  observation/vggt_tokens    float16[21, 64]"
    assert open_dataset(str(out)).num_steps == 455


def test_a_described_mapping_converts_a_dataset_without_one_built_in(
    toy: Any, tmp_path: Path
) -> None:
    source, mapping, out = toy.write(tmp_path), tmp_path / "mapping.toml", tmp_path / "out"
    described = run(source, "--describe")
    assert (described.returncode, described.stderr) == (0, "")
    mapping.write_text(described.stdout)
    result = run(source, out, "--mapping", mapping)
    assert (result.returncode, result.stderr) == (0, "")
    again = run(source, out, "--mapping", mapping, "--overwrite")
    assert (again.returncode, again.stderr) == (0, "")
    assert open_dataset(str(out)).manifest.tasks == ("lift the cup",)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("gone", ["out"], "error: .*/gone: expected RLDS .features.json"),
        ("toy", [], "error: command line: expected a destination; found only SRC"),
        ("toy", ["out"], r"error: .*a dataset that .* prints.*found toy.*--describe"),
        ("libero_mini", ["taken"], "error: .*/taken: .*found a dataset. Replace it with --overwr"),
        (
            "libero_mini",
            ["out", "--split", "val"],
            "error: .*a split val with episodes; found train",
        ),
        ("toy", ["out", "--mapping", "gone.toml"], "error: gone.toml: expected a mapping in TOML"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    toy: Any, mini_rlds: Path, tmp_path: Path, source: str, arguments: list[str], message: str
) -> None:
    toy.write(tmp_path)
    (tmp_path / "libero_mini").symlink_to(mini_rlds.parent)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "dataset.json").write_text('{"format_version": 1, "schema": []}')
    paths = [tmp_path / a if a in ("out", "taken") else a for a in arguments]
    result = run(tmp_path / source, *paths)
    assert result.returncode == 2
    # Only what stands at the destination is found after the mapping was printed.
    assert bool(result.stdout) == (arguments == ["taken"])
    (line,) = result.stderr.splitlines()
    assert re.match(message, line)
    assert not (tmp_path / "out").exists()


def test_the_list_of_mappings_needs_no_source() -> None:
    result = run("--list")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"^bridge_dataset +5 Hz +CC-BY-4\.0 +Bridge V2", result.stdout, re.MULTILINE)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run(tmp_path / "gone", tmp_path / "out", "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "no such directory" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["src", "dst", "--overwrit"], ["Unrecognized options: --overwrit", "--overwrite"]),
        ([], ["SRC", "What to convert: an RLDS folder"]),
        (["src", "dst", "--workers", "two"], ["Error parsing --workers: ", "'two'", "--workers N"]),
    ],
)
def test_a_wrong_command_line_is_explained_with_exit_code_2(
    arguments: list[str], words: list[str]
) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words)


@pytest.mark.parametrize(
    ("module", "usage"),
    [
        ("converters.rlds", "[-h] [OPTIONS] SRC [DST]"),
        ("converters.verify", "[-h] SRC [DST] [--mapping FILE] [--debug]"),
        ("converters.export", "[-h] DST [OUT] [--to {rlds}] [--overwrite] [--debug]"),
        ("pipeline.inspection", "[-h] [OPTIONS] DST"),
    ],
)
def test_help_names_what_a_flag_takes(module: str, usage: str) -> None:
    result = Command(module, "--help").finish()
    assert result.stdout.startswith(f"usage: python -m {module} {usage}\n")
    assert not re.search(r"STR|INT|PATH|None", result.stdout)


def test_help_names_each_flag_of_a_conversion() -> None:
    shown = re.findall(r"--\w+ [A-Z][A-Z:]*(?= )", run("--help").stdout)
    flags = ["--split NAME", "--episodes A:B", "--mapping FILE", "--image_quality N"]
    flags += ["--instruction TEXT", "--workers N"]
    assert shown == flags


@pytest.mark.parametrize("runner", ["beam", "spark"])
def test_workers_elsewhere_read_a_relative_source_by_its_absolute_path(runner: str) -> None:
    job = run("nowhere/1.0.0", "out", "--runner", runner).finish(2)
    where = job.stderr.partition("error: ")[2].partition(":")[0]
    assert where == f"{Path.cwd()}/nowhere/1.0.0"
