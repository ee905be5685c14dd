"""Where files of the hub are kept on this machine."""

import os
import pathlib


def hub_cache() -> pathlib.Path:
    """Folder in which huggingface_hub keeps single files, such as weights and vocabularies."""
    # Its own constants are read once, at its import; a variable that is set later counts too.
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _path(named) if named else _home() / "hub"


def dataset_cache() -> pathlib.Path:
    """Folder in which this project keeps datasets and policies of the hub, by commit."""
    named = os.environ.get("OCTOGRAIN_CACHE")
    return _path(named) if named else _home() / "octograin"


def cache_directories() -> list[pathlib.Path]:
    """Returns the folders in which files of the hub may be cached, whether they exist or not."""
    return [_home(), hub_cache(), dataset_cache()]


def _home() -> pathlib.Path:
    named = os.environ.get("HF_HOME")
    return _path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface")


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(os.path.expandvars(text)).expanduser()
