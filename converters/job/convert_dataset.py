"""`octograin convert` as a function: converts a source in one line of Python."""

from converters.job.convert import convert
from converters.mapping.mapping_registry import find_mapping, read_mapping
from converters.sources.open_source import open_source
from converters.sources.source import Source


def convert_dataset(
    source: str | Source,
    destination: str,
    mapping: str | None = None,
    *,
    split: str | None = None,
    overwrite: bool = False,
) -> None:
    """Converts a source to a dataset directory, in this process.

    A job that was killed resumes where it stopped when it is called again. `octograin convert` does
    the same in several processes, with a progress bar.

    Args:
      source: Its directory or file, as `octograin convert` takes it; or an object that has the
        methods of `Source`, for a format of your own.
      destination: The dataset directory to write.
      mapping: TOML file that maps source keys to features, or a name that `octograin convert
        --list` prints; None: the one that has the dataset's name.
      split: Split of the source, where it is a path; None: `train` where its format has splits.
      overwrite: Whether what stands at the destination is replaced.

    Raises:
      UserError: The source or its mapping has problems, or the destination is in use.
    """
    opened = open_source(source, split) if isinstance(source, str) else source
    chosen = find_mapping(opened) if mapping is None else read_mapping(mapping)
    convert(opened, destination, chosen, overwrite=overwrite)
