"""The notebooks of `examples/` run, and show what running them gives."""

import ast
import pathlib
import re
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import octograin
from tests.examples.run_notebooks import notebooks, run, texts

README = pathlib.Path(__file__).parents[2] / "README.md"
_MAX_BYTES = 300_000
_OF_A_MACHINE = re.compile(r"/tmp/|/home/|/root/|\d m?s\b|samples/s|it/s|Warning|WARNING")
"""Paths, timings, progress and warnings, which no reader needs."""
_AGAIN = "run `python -m tests.examples.run_notebooks`, and look at what it changes"


def read(path: pathlib.Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_there_are_five() -> None:
    assert [path.name[:3] for path in notebooks()] == ["01_", "02_", "03_", "04_", "05_"]


def marked(path: pathlib.Path) -> Any:
    """The notebook as a case; what the last two show has tests of its own.

    `tests/train/policy` and `tests/train/serve` act and serve, `test_example_parts.py` trains.
    """
    marks = [pytest.mark.slow] if path.name.startswith(("04_", "05_")) else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in notebooks()])
def test_a_notebook_shows_what_it_gives(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert texts(run(path, tmp_path)) == texts(read(path)), _AGAIN


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_is_python_and_imports_names_of_octograin_that_exist(path: pathlib.Path) -> None:
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    # Lines such as `%pip` and `!git` become calls.
    code = "".join(map(TransformerManager().transform_cell, cells))
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = {name.name for node in imports if node.module == "octograin" for name in node.names}
    assert names
    assert names <= set(octograin.__all__)


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_is_small_and_of_no_machine(path: pathlib.Path) -> None:
    assert path.stat().st_size <= _MAX_BYTES
    notebook = read(path)
    nbformat.validate(notebook)
    assert any(texts(notebook)), f"no outputs: {_AGAIN}"
    assert not [text for text in texts(notebook) if _OF_A_MACHINE.search(text)]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert not any(cell.metadata for cell in notebook.cells), "timestamps of an execution"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_installs_octograin_where_it_is_not(path: pathlib.Path) -> None:
    install = next(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert install == next(c.source for c in read(notebooks()[0]).cells if c.cell_type == "code")
    (repository,) = re.findall(r'^REPOSITORY = "(.*)"', install, re.MULTILINE)
    assert f"git clone {repository} octograin" in README.read_text()
    assert "--constraint kept.txt" in install


def test_an_error_and_another_output_are_seen(tmp_path: pathlib.Path) -> None:
    cells = [nbformat.v4.new_code_cell("print(6 * 7)"), nbformat.v4.new_code_cell("1 / 0")]
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells[:1]), path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert texts(run(path, tmp_path / "first")) == ["42\n"] != texts(read(path))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run(path, tmp_path / "second")
