import doctest
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(("page", "examples"), [("pipeline.md", 20), ("model.md", 10)])
def test_examples_of_a_page_give_what_it_says(
    page: str,
    examples: int,
    mini_dataset: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "libero_mini").symlink_to(mini_dataset)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert attempted > examples
    assert failed == 0
