import pathlib

import pytest

from pipeline import bundled
from pipeline.errors import DataError

ROOT = pathlib.Path(__file__).parents[2]


def test_a_bundled_file_is_found_in_a_checkout() -> None:
    found = {name: bundled.local_path(f"octograin://{name}") for name in bundled.BUNDLED}
    assert found == {name: str(ROOT / "tests" / "data" / name) for name in found}
    assert bundled.presets()["libero_vggt"] == ROOT / "configs" / "libero_vggt.py"


def test_a_bundled_file_is_found_in_a_wheel(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("presets/libero_vggt.py", "data/libero_mini/1.0.0/features.json"):
        (tmp_path / "octograin" / name).parent.mkdir(parents=True)
        (tmp_path / "octograin" / name).touch()
    monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "octograin")
    assert bundled.local_path("octograin://libero_mini") == f"{tmp_path}/octograin/data/libero_mini"
    assert bundled.presets() == {"libero_vggt": tmp_path / "octograin/presets/libero_vggt.py"}


def test_other_paths_stay_as_they_are() -> None:
    assert bundled.local_path("data/libero_mini") == "data/libero_mini"
    assert bundled.local_path("hf://a/b") == "hf://a/b"


@pytest.mark.parametrize("name", ["gone", "../conftest.py", ""])
def test_what_is_not_bundled_is_named(name: str) -> None:
    with pytest.raises(DataError, match=r"octograin://libero_mini, octograin://vocabulary\.model"):
        bundled.local_path(f"octograin://{name}")
