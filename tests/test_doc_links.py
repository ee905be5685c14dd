"""Every link between the pages leads to a file and, where it names one, a heading."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
_OWN = re.compile(
    r"`((?:benchmarks|configs|converters|docs|octograin|pipeline|tests|train)/[\w./]*)(?::\w+)?`"
)
_EXAMPLES = {"configs/my_robot.py"}
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken(page: pathlib.Path) -> list[str]:
    """Returns the relative links of a page that lead nowhere."""
    links = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text()))
    found = []
    for link in (link for link in links if not link.startswith("http")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            found.append(link)
        elif heading:
            headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", target.read_text()), re.MULTILINE)
            found += [link] if heading not in map(anchor, headings) else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    assert not broken(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_checkout_exist(page: pathlib.Path) -> None:
    named = set(_OWN.findall(page.read_text())) - _EXAMPLES
    assert not [name for name in named if not (ROOT / name).exists()]


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    listed = {str(path) for path in pages if f"]({path})" in index}
    assert {str(path) for path in pages if path.parts[0] != "decisions"} == listed | {"index.md"}


def test_broken_links_are_found(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`\n[1](other.md) [2](#a-b) [3](#c) [4](page.md#a-b) [5](https://x.y)\n")
    assert broken(page) == ["other.md", "#c"]
