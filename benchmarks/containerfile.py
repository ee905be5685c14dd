"""Runs the lines of the Containerfile in a directory, where no container engine is at hand.

    debootstrap --variant=minbase trixie ROOT
    python -m benchmarks.containerfile ROOT --build_args EXTRAS=hub,serve

needs Debian and root. It prints a JSON object per line that changes ROOT: its seconds, and how many
MB it adds. With `--commands`, it runs these in what the lines made, as the image's user and as
process 1:

    python -m benchmarks.containerfile ROOT --commands 'octograin --version'

`--bind PATH` shows ROOT a file or folder of this machine, read-only, while a line runs, such as
pip's configuration. `--passed NAME` passes a variable of the environment.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import string
import subprocess
import time

import tyro

from benchmarks import measuring
from pipeline.errors import UserError, user_errors_exit

CONTAINERFILE = pathlib.Path(__file__).parents[1] / "Containerfile"
_NETWORK = ("/etc/resolv.conf", "/etc/hosts")
_NOT_EXECUTED = {"FROM", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"}


@dataclasses.dataclass(frozen=True)
class Args:
    """Runs the lines of the Containerfile, or commands in what they made."""

    root: tyro.conf.Positional[pathlib.Path]
    """Directory that debootstrap has filled."""
    build_args: tuple[str, ...] = ()
    """NAME=VALUE, in place of the default of an ARG line."""
    bind: tuple[str, ...] = ()
    """Files and folders of this machine that ROOT shows at the same path."""
    passed: tuple[str, ...] = ()
    """Variables of this environment that the lines see."""
    commands: tuple[str, ...] = ()
    """Run these in place of the Containerfile's lines."""


@dataclasses.dataclass
class State:
    """What the lines so far have set."""

    variables: dict[str, str]
    """Those of ENV and, for the lines after them, of ARG."""
    folder: str = "/"
    """WORKDIR."""
    user: str = "root"
    """USER."""


def read_lines(text: str) -> list[tuple[str, str]]:
    """Splits a Containerfile into its (INSTRUCTION, rest), with continued lines joined."""
    without_comments = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    joined = without_comments.replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, rest in pairs]


def main() -> None:
    """Parses the command line, and runs the lines or the commands."""
    with user_errors_exit():
        args = tyro.cli(Args, prog="python -m benchmarks.containerfile", use_underscores=True)
        state = State({name: os.environ[name] for name in args.passed})
        given = dict(pair.split("=", maxsplit=1) for pair in args.build_args)
        for word, rest in read_lines(CONTAINERFILE.read_text()):
            _apply(word, rest, state, given)
            if word in ("RUN", "COPY") and not args.commands:
                _measure(word, rest, args, state)
        for command in args.commands:
            _measure("RUN", command, args, state)


def _apply(word: str, rest: str, state: State, given: dict[str, str]) -> None:
    """Notes what a line sets for those after it."""
    name, _, value = string.Template(rest).safe_substitute(state.variables).partition("=")
    match word:
        case "ARG":
            state.variables[name] = given.get(name, value)
        case "ENV":
            state.variables[name] = value
        case "WORKDIR":
            state.folder = name
        case "USER":
            state.user = name
        case "RUN" | "COPY":
            pass
        case _ if word not in _NOT_EXECUTED:
            raise UserError(
                where=str(CONTAINERFILE),
                expected="an instruction that this program runs",
                found=word,
                remedy="Add it to benchmarks/containerfile.py.",
            )


def _measure(word: str, rest: str, args: Args, state: State) -> None:
    before, start = _size_mb(args.root), time.perf_counter()
    if word == "COPY":
        _copy(rest.split(), args.root / state.folder.lstrip("/"))
    else:
        status = subprocess.run(_command(rest, args, state), check=False).returncode
        if status:
            raise UserError(
                where=f"{word} {rest}",
                expected="exit status 0",
                found=status,
                remedy="See the output above.",
            )
    seconds = round(time.perf_counter() - start, 1)
    added = round(_size_mb(args.root) - before)
    measuring.print_figures({"line": f"{word} {rest}"[:60], "seconds": seconds, "added_mb": added})


def _copy(paths: list[str], folder: pathlib.Path) -> None:
    """Copies files, or what is in a folder, as COPY does."""
    *sources, to = paths
    for source in sources:
        path = CONTAINERFILE.parent / source
        if path.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, folder / to, ignore=unwanted, dirs_exist_ok=True)
        else:
            (folder / to).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / to)


def _command(line: str, args: Args, state: State) -> list[str]:
    """The command that runs a line in the root, in namespaces for its mounts and processes."""
    root, mounts = args.root.resolve(), []
    (root / state.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for path in map(pathlib.Path, (*_NETWORK, *args.bind)):
        inside = root / path.relative_to("/")
        if path.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        elif not inside.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
        # Read-only, in a second step: a package that is installed must not write to this machine.
        mounts.append(shlex.join(["mount", "--bind", str(path), str(inside)]))
        mounts.append(shlex.join(["mount", "-o", "remount,bind,ro", str(inside)]))
    mounts.append(f"mount -t proc proc {shlex.quote(str(root / 'proc'))}")
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **state.variables}
    pairs = [f"{name}={value}" for name, value in variables.items()]
    into = ["chroot", f"--userspec={state.user}", str(root), "env", "-i", "-C", state.folder]
    enter = shlex.join([*into, *pairs, "sh", "-c", line])
    steps = " && ".join([*mounts, f"exec {enter}"])
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", steps]


def _size_mb(root: pathlib.Path) -> float:
    """What the files of a directory take on disk."""
    command = ["du", "--one-file-system", "--summarize", "--block-size=1", str(root)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(listed.split()[0]) / 1e6


if __name__ == "__main__":
    main()
