import importlib
import io
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from converters.job.job_progress import shown
from pipeline.errors import DataError
from pipeline.terminal import escaped, escaped_lines, first_few, log_to_stderr, shortened, show

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "converters.job.convert_command",
    "converters.verify.__main__",
    "converters.export.__main__",
    "converters.export.lerobot_export",
    "converters.vggt.__main__",
    "examples.scripted_expert.__main__",
    "pipeline.inspection.__main__",
    "pipeline.benchmark.__main__",
    "train.evaluate.libero.__main__",
    "train.run",
    "train.serve.__main__",
    "train.evaluate.evaluate_command",
    "train.report.__main__",
    "train.checkpoints.export_run",
    "train.policy.parity",
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("take the crème brûlée 杯", "take the crème brûlée 杯"),
        ("cup\x1b[2J", r"cup\x1b[2J"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("\u200bzero\u2066width", r"\u200bzero\u2066width"),
        ("\x9b31m", r"\x9b31m"),
        (b"name\xff".decode(errors="surrogateescape"), r"name\udcff"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped_lines(f"{text}\nb") == "\n".join(map(escaped, f"{text}\nb".split("\n")))


def test_long_lists_and_texts_are_cut_with_a_count() -> None:
    names = [f"task {n}" for n in range(100_000)]
    assert first_few(names, "; ", 2) == "task 0; task 1 and 99,998 more"
    assert first_few(names[:5]) == "task 0, task 1, task 2, task 3, task 4"
    assert shortened("0,2,4,6,8", 9) == "0,2,4,6,8"
    assert shortened("7" * 3_000_000, 3) == "777... (3,000,000 characters in all)"


def test_an_error_is_one_line_whatever_the_names_in_it() -> None:
    error = DataError(where="a\nb\x1b[1m", expected="x\u202e", found="y\r", remedy="Do z.")
    assert str(error) == r"a\nb\x1b[1m: expected x\u202e; found y\r. Do z."


def test_progress_takes_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("[/bold] set\x1b[2J", 3) as on_progress:
        on_progress(1, 5)
    assert "\x1b[2J" not in capsys.readouterr().err


def test_logged_names_are_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    log_to_stderr()
    logging.getLogger("converters").warning("set %s\nsecond line", "a\x1b[2J")
    assert capsys.readouterr().err == "set a\\x1b[2J\nsecond line\n"


def test_shown_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show("one\x07\ntwo\n")
    assert capsys.readouterr().out == "one\\x07\ntwo\n"


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_prints_on_an_ascii_terminal_and_survives_a_full_one(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = importlib.import_module(module)
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    ascii_bytes = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(ascii_bytes, encoding="ascii"))
    with pytest.raises(SystemExit) as ended:
        command.main()
    sys.stdout.flush()
    assert (ended.value.code, ascii_bytes.getvalue()[:6]) == (0, b"usage:")
    with open("/dev/full", "w", encoding="ascii") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: stdout: expected to take what the command prints; found No space left on device. "
        "Free space where its output goes, or send it elsewhere.\n"
    )


COMMAND = """
import sys
from pipeline.errors import DataError, user_errors_exit
with user_errors_exit():
    for _ in range({lines}):
        sys.stdout.write("instruction: prends la crème" + "." * 100 + chr(10))
    {end}
"""
MISTAKE = 'raise DataError(where="é", expected="b", found="c", remedy="D.")'


@pytest.mark.parametrize(
    ("redirection", "lines", "end", "code", "err"),
    [
        ("> /dev/full", 1, "pass", 2, "error: stdout: expected"),
        ("> /dev/full", 1000, "pass", 2, "error: stdout: expected"),
        ("> /dev/full", 1, MISTAKE, 2, r"error: \xe9: expected b; found c. D."),
        ("| head -n 1 > /dev/null; exit ${PIPESTATUS[0]}", 1000, "pass", 141, ""),
        (">&-", 1000, "pass", 0, ""),
        (">&- 2>&-", 1000, MISTAKE, 2, ""),
        ("> /dev/null 2> /dev/full", 1, MISTAKE, 2, ""),
        ("> /dev/null", 1, "pass", 0, ""),
    ],
)
def test_stdout_that_is_full_closed_or_left_ends_in_a_line_and_a_code(
    redirection: str, lines: int, end: str, code: int, err: str
) -> None:
    command = COMMAND.format(lines=lines, end=end)
    result = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (result.returncode, result.stderr[: len(err)]) == (code, err)
    assert result.stderr.count("\n") == bool(err)
