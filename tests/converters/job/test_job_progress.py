import re
from collections.abc import Callable

import pytest

from converters.job import job_progress
from converters.job.job_progress import Status, shown


@pytest.mark.parametrize(
    ("reported", "seconds", "text"),
    [
        ([], 0.0, "0/432 episodes"),
        ([], 5.0, "0/432 episodes"),
        ([(0, 0)], 5.0, "0/432 episodes"),
        ([(1, 10)], 0.0, "1/432 episodes"),
        ([(100, 0)], 5.0, "100/432 episodes"),  # by an earlier run, at no speed of this one
        ([(1, 2_000_000)], 2.0, "1/432 episodes, 0.5 ep/s, 1.0 MB/s, 14:22 left"),
        ([(120, 98_100_000)], 10.0, "120/432 episodes, 12.0 ep/s, 9.8 MB/s, 0:26 left"),
        (
            [(100, 0), (20, 50_000_000)],
            10.0,
            "120/432 episodes, 2.0 ep/s, 5.0 MB/s, 2:36 left",
        ),
        ([(1, 1)] * 432, 10.0, "432/432 episodes, 43.2 ep/s, 0.0 MB/s, 0:00 left"),
        ([(432, 0)], 10.0, "432/432 episodes"),
        ([(1, 1_000_000)], 60.0, "1/432 episodes, 0.0 ep/s, 0.0 MB/s, 7:11:00 left"),
        ([(1, 1_000_000)], 3601.0, "1/432 episodes, 0.0 ep/s, 0.0 MB/s, 431:07:11 left"),
        ([(372, 4_320_000)], 372.0, "372/432 episodes, 1.0 ep/s, 0.0 MB/s, 1:00 left"),
        ([(373, 4_320_000)], 373.0, "373/432 episodes, 1.0 ep/s, 0.0 MB/s, 0:59 left"),
    ],
)
def test_status_tells_what_is_done_how_fast_and_how_long_it_takes(
    reported: list[tuple[int, int]], seconds: float, text: str
) -> None:
    status = Status(432)
    for num_episodes, num_bytes in reported:
        status.add(num_episodes, num_bytes)
    assert status.text(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [0.0]
    monkeypatch.setattr(job_progress.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_short_job_is_silent_in_a_log(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with shown("set", 3) as on_progress:
        for _ in range(3):
            clock(9.0)
            on_progress(1, 1_000_000)
    captured = capsys.readouterr()
    assert re.fullmatch(r"\s*", captured.err)
    assert captured.out == ""


def test_a_long_job_writes_a_line_every_half_minute(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with shown("set", 10) as on_progress:
        for _ in range(7):
            clock(10.0)
            on_progress(1, 5_000_000)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert lines == ["set: 4/10 episodes, 0.1 ep/s, 0.5 MB/s, 1:00 left"]


def test_frames_are_counted_as_such() -> None:
    status = Status(total=910, unit=job_progress.FRAMES)
    status.add(452, 0)
    assert status.text(1.0) == "452/910 frames"
    status.add(58, 29_000_000)
    assert status.text(2.0) == "510/910 frames, 29.0 frames/s, 14.5 MB/s, 0:14 left"
