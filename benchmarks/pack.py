"""Collects what `benchmarks.accelerator` needs on a machine without a network, beside the checkout.

    python -m benchmarks.pack DIR [--python_version 3.12]

writes DIR/dataset, the bundled set converted, and DIR/wheels, what an image with JAX, Flax and
Orbax lacks. There:

    python -m pip install --no-index --no-deps --target /tmp/site DIR/wheels/*.whl
    PYTHONPATH=/tmp/site python -m benchmarks.accelerator --dataset DIR/dataset
"""

import dataclasses
import pathlib
import subprocess
import sys
from typing import Annotated

import tyro

from pipeline.errors import UserError, user_errors_exit

_LIMIT_MB = 60
_WHEELS = (
    *("grain", "portpicker", "array_record", "simplejpeg", "google-crc32c", "tensorboardX"),
    *("tyro", "docstring_parser", "typeguard", "cloudpickle"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
)
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


@dataclasses.dataclass(frozen=True)
class Args:
    """Collects the dataset and the wheels; start it in the folder of the checkout."""

    directory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder to make."""
    python_version: str = "3.12"
    """Python version of the other machine."""


def main() -> None:
    """Parses the command line, collects, and prints the size of it and the checkout in MiB."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.pack", use_underscores=True)
        directory = pathlib.Path(args.directory)
        _run("converters.rlds", "tests/data/libero_mini", str(directory / "dataset"), "--overwrite")
        _run("pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *_target(args))
        tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
        files = [path for path in directory.rglob("*") if path.is_file()]
        files += map(pathlib.Path, tracked.stdout.splitlines())
        megabytes = sum(path.stat().st_size for path in files) / 2**20
        sys.stdout.write(f"{directory} and the checkout: {megabytes:.1f} MiB\n")
        if megabytes > _LIMIT_MB:
            raise UserError(
                where=str(directory),
                expected=f"at most {_LIMIT_MB} MiB with the checkout",
                found=f"{megabytes:.1f} MiB",
                remedy="Remove wheels that the other machine has, or large files of the checkout.",
            )


def _target(args: Args) -> list[str]:
    platforms = [f"--platform={name}_x86_64" for name in _PLATFORMS]
    where = ["--dest", f"{args.directory}/wheels", "--constraint", "constraints.txt"]
    return [*platforms, f"--python-version={args.python_version}", *where, *_WHEELS]


def _run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
