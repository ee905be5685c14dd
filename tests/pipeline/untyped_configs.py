"""Makes configs in a process without the type checker of the tests, and prints how they fail."""

import sys

import octograin
from octograin import DataConfig, DatasetConfig, UserError


def main() -> None:
    """Prints one line per argument, each the keywords of a `DataConfig`."""
    names = {name: getattr(octograin, name) for name in octograin.__all__}
    settings = {"datasets": (DatasetConfig("a"),), "vocabulary": ""}
    for change in sys.argv[1:]:
        try:
            DataConfig(**settings | eval(f"dict({change})", names))
            line = "no error"
        except UserError as error:
            line = str(error)
        sys.stdout.write(f"{line}\n")
