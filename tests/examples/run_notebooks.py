"""Runs the notebooks of `examples/` in fresh kernels of this interpreter and this checkout.

    python -m tests.examples.run_notebooks

writes their outputs again, into the files.
"""

import json
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import matplotlib.font_manager  # noqa: F401  (lists the fonts once: a cell would warn that it does)
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_KERNEL = "checkout"
_TIMEOUT_S = 600
# Orbax prints it, past %%capture, if a save took a second.
_WAITED = re.compile(r"^WARNING:absl:Waiting for previous save .*\n", re.MULTILINE)


def notebooks() -> list[pathlib.Path]:
    """The notebooks, in their order."""
    return sorted(EXAMPLES.glob("*.ipynb"))


def run(path: pathlib.Path, folder: pathlib.Path) -> Any:
    """A copy of a notebook with the outputs of running it in an empty folder.

    Raises:
      CellExecutionError: A cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    manager = AsyncKernelManager(
        kernel_name=_KERNEL,
        kernel_spec_manager=_kernels(folder / "kernels"),
        connection_file=str(folder / "connection.json"),
    )
    (folder / "work").mkdir()
    resources = {"metadata": {"path": str(folder / "work")}}
    NotebookClient(
        notebook,
        km=manager,
        startup_timeout=_TIMEOUT_S,
        timeout=_TIMEOUT_S,
        resources=resources,
        record_timing=False,
    ).execute(cleanup_kc=True)
    notebook.metadata = nbformat.from_dict(metadata)
    return notebook


def texts(notebook: Any) -> list[str]:
    """What each code cell prints and returns as text; images are left out.

    A busy machine cuts what one cell prints into several outputs, and checkpoints wait on it.
    """
    printed = [
        "".join(
            output["text"] if "text" in output else output["data"].get("text/plain", "")
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [_WAITED.sub("", text) for text in printed]


def _kernels(folder: pathlib.Path) -> KernelSpecManager:
    """Knows one kernel, whatever else is installed: this interpreter, with this checkout."""
    (folder / _KERNEL).mkdir(parents=True)
    environment = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder),
    }
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": _KERNEL,
        "language": "python",
        "env": environment,
    }
    (folder / _KERNEL / "kernel.json").write_text(json.dumps(specification))
    return KernelSpecManager(kernel_dirs=[str(folder)])


def main() -> None:
    """Runs every notebook, or those that are named, and writes it with its outputs."""
    for path in map(pathlib.Path, sys.argv[1:]) if sys.argv[1:] else notebooks():
        with tempfile.TemporaryDirectory() as folder:
            before = os.times()
            notebook = run(path, pathlib.Path(folder))
        nbformat.write(notebook, path)
        after = os.times()
        seconds = sum(after[:4]) - sum(before[:4])
        size = path.stat().st_size / 1000
        sys.stdout.write(f"{path.name}: {size:.0f} kB, {seconds:.0f} CPU s\n")


if __name__ == "__main__":
    main()
