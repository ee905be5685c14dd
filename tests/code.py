"""A program that a test gives as text, for a process of its own: `Command("tests.code", text)`."""

import sys


def main() -> None:
    """Runs the first argument as `python -c` does; the others are the program's."""
    text = sys.argv.pop(1)
    exec(compile(text, "<code>", "exec"), {"__name__": "__main__"})
