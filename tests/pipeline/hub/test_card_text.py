import pytest

from pipeline.hub.card_text import code, header, is_signed, plain, signed, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("open the drawer", "open the drawer"),
        ("a|<i>[x](y)", r"a\|\<i\>\[x\](y)"),
        ("*bold*\n# title", r"\*bold\* \# title"),
        ("rx_rad _x_", r"rx_rad \_x\_"),
    ],
)
def test_texts_of_strangers_are_shown_unchanged(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_table_leaves_empty_columns_out() -> None:
    rows = [["1", "", code("a|b")], ["2", "", ""]]
    assert table(["n", "none", "text"], rows) == "\n".join(
        ["| n | text |", "| --- | --- |", r"| 1 | `a\|b` |", "| 2 |  |"]
    )


def test_the_header_is_yaml() -> None:
    fields = {"license": "mit", "tags": ["a: b"], "name": ""}
    assert header(fields) == '---\nlicense: "mit"\ntags: ["a: b"]\n---'


def test_a_card_that_was_changed_is_no_longer_signed() -> None:
    card = signed("# title\n")
    assert is_signed(card)
    assert not is_signed(card.replace("title", "mine"))
    assert not is_signed("# title\n")
