"""What a dataset's provenance says of the recording, which an export hands to its conversion.

So a policy that was trained on a set that went through another format is still known to have seen
the initial states of its demonstrations.
"""

from collections.abc import Mapping

from etils import epath

from converters.sources.image_encoding import QUALITY_NOTE
from pipeline.errors import DataError
from pipeline.files import parse_json, read_text

PROVENANCE = "provenance"
"""The field of an export's file that holds the dataset's provenance."""

_OF_A_CONVERSION = frozenset(
    {"address", "episodes", "format", "fps", QUALITY_NOTE, "source", "split", "version"}
)
_EDIT = "edit_"


def recording_notes(provenance: Mapping[str, str]) -> dict[str, str]:
    """Returns what remains true of the same steps in another format.

    What was edited, and from where and how the dataset was converted, is left out: the export is
    what a further conversion starts from.
    """
    return {
        name: text
        for name, text in provenance.items()
        if name not in _OF_A_CONVERSION and not name.startswith(_EDIT)
    }


def read_recording_notes(path: epath.Path) -> dict[str, str]:
    """Reads the notes from a file of an export; empty where there is none.

    Args:
      path: JSON object, with the provenance of the exported dataset in the field `PROVENANCE`.

    Raises:
      DataError: The file is not readable, or its provenance is not texts by name.
    """
    if not path.exists():
        return {}
    expected = "a JSON object, whose provenance, if any, is texts by name"
    remedy = "Fetch or export the directory again, or remove this file: it describes the recording."
    text = read_text(path, expected=expected, remedy=remedy)
    values = parse_json(text, where=str(path), expected=expected, remedy=remedy)
    provenance = values.get(PROVENANCE, {}) if isinstance(values, dict) else values
    is_texts = isinstance(provenance, dict) and all(
        isinstance(text, str) for text in provenance.values()
    )
    if not is_texts:
        raise DataError(
            where=str(path),
            expected=expected,
            found=f"provenance {provenance!r:.60}",
            remedy=remedy,
        )
    return recording_notes(provenance)
