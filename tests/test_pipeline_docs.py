import doctest
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_examples_of_the_pipelines_page_give_what_it_says(
    mini_dataset: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "libero_mini").symlink_to(mini_dataset)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    page = str(ROOT / "docs" / "pipeline.md")
    failed, attempted = doctest.testfile(page, module_relative=False)
    assert attempted > 20
    assert failed == 0
