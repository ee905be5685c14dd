"""Forgets modules that a test has written and imported, as another process would."""

import os
import pathlib
import sys

from pipeline.parts import part_files, part_sources


def forget_modules(folder: pathlib.Path) -> None:
    """Removes the modules whose files lie in a folder, and what is known of them."""
    inside = f"{folder}{os.sep}"  # a path object for each of thousands of modules takes 0.1 s
    for name, module in list(sys.modules.items()):
        places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
        if any(place and f"{place}{os.sep}".startswith(inside) for place in places):
            del sys.modules[name]
    for path in [path for path in part_files._loaded if path.is_relative_to(folder)]:
        del part_files._loaded[path]
    part_sources._warn_of_change.cache_clear()
