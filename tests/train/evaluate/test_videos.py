import pathlib

import av
import numpy as np
import pytest

from pipeline.errors import UserError
from tests.train.evaluate.fakes import trial
from train.evaluate import videos
from train.evaluate.videos import Film, beside


def seen(value: int) -> dict[str, np.ndarray]:
    image = np.full((16, 16, 3), value, np.uint8)
    return {"proprio": np.zeros(8), "image_wrist": image + 100, "image_primary": image}


def test_images_stand_side_by_side_with_even_sides() -> None:
    image = beside([np.full((5, 4, 3), 1, np.uint8), np.full((3, 5, 3), 2, np.uint8)])
    assert image.shape == (6, 10, 3)
    assert image[:, :, 0].sum() == 5 * 4 * 1 + 3 * 5 * 2
    assert (image[:3, 4:9] == 2).all()


def test_a_video_holds_what_the_policy_saw(tmp_path: pathlib.Path) -> None:
    film = Film(tmp_path / "videos", trial(7), 5.0)
    for value in (0, 60, 120):
        film.add(seen(value))
    assert [p.suffix for p in (tmp_path / "videos").iterdir()] == [".mp4"]
    assert film.keep("success") == "libero_spatial-0-07-success.mp4"
    (path,) = (tmp_path / "videos").iterdir()
    with av.open(str(path)) as video:
        (stream,) = video.streams.video
        assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 5)
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert [frame.shape for frame in frames] == [(16, 32, 3)] * 3
    for frame, value in zip(frames, (0, 60, 120), strict=True):
        assert abs(float(frame[:, 2:14].mean()) - value) < 8
        assert abs(float(frame[:, 18:30].mean()) - value - 100) < 8


def test_a_video_takes_the_place_of_an_errors(tmp_path: pathlib.Path) -> None:
    for outcome in ("error", "failure"):
        film = Film(tmp_path, trial(7), 5.0)
        film.add(seen(0))
        film.keep(outcome)
    assert [path.name for path in tmp_path.iterdir()] == ["libero_spatial-0-07-failure.mp4"]
    film = Film(tmp_path, trial(8), 5.0)
    film.add(seen(0))
    film.drop()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_policy_without_cameras_has_no_video(tmp_path: pathlib.Path) -> None:
    film = Film(tmp_path, trial(7), 5.0)
    film.add({"proprio": np.zeros(8)})
    assert film.keep("success") is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_pyav_is_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(videos.importlib, "import_module", missing)
    with pytest.raises(UserError, match="--videos none"):
        Film(tmp_path, trial(7), 5.0).add(seen(0))
