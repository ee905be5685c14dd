import doctest
import pathlib

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "actions.md"


def test_examples_of_the_page_give_what_it_says() -> None:
    failed, attempted = doctest.testfile(str(PAGE), module_relative=False)
    assert attempted > 15
    assert failed == 0
