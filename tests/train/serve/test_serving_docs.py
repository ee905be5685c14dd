import doctest
import pathlib

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "acting.md"


def test_examples_of_the_page_give_what_it_says(policy_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "robot").symlink_to(policy_run)
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert attempted > 12
    assert failed == 0
