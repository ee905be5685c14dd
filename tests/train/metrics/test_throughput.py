import pytest

from train.metrics.metrics_log import Meter


def fed(*steps: tuple[float, float]) -> Meter:
    meter = Meter(samples_per_step=16, bytes_per_step=12_600_000)
    for step_s, wait_s in steps:
        meter.add(step_s, wait_s)
    return meter


def test_pace_is_that_of_all_steps() -> None:
    meter = fed((0.1, 0.0), (0.3, 0.02))
    assert meter.samples_per_s == pytest.approx(2 * 16 / 0.4)
    assert meter.bytes_per_s == pytest.approx(2 * 12.6e6 / 0.4)
    assert meter.wait_share == pytest.approx(0.05)


def test_rare_long_waits_show_in_the_99th_percentile() -> None:
    meter = fed(*[(0.1, 0.001)] * 97, *[(0.5, 0.4)] * 3)
    assert meter.wait_p99_s == pytest.approx(0.4)
    assert fed(*[(0.1, 0.001)] * 100).wait_p99_s == pytest.approx(0.001)


def test_old_steps_are_forgotten() -> None:
    meter = fed((1000.0, 999.0), *[(0.1, 0.0)] * 200)
    assert meter.samples_per_s == pytest.approx(160)
    assert meter.wait_share == 0


@pytest.mark.parametrize(
    ("num_bytes", "rate"),
    [(5, "5.0 B/s"), (12_600, "12.6 kB/s"), (640_400_000, "640 MB/s"), (0, "0.0 B/s")],
)
def test_line_says_all_of_it(num_bytes: int, rate: str) -> None:
    meter = Meter(samples_per_step=16, bytes_per_step=num_bytes)
    meter.add(1.0, 0.025)
    assert meter.line() == f"16 samples/s, wait 2.5% (p99 25 ms), {rate}"
