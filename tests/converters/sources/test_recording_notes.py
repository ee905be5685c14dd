"""What is known of a recording survives the way through another format."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from converters.export.lerobot.lerobot_writer import export_lerobot
from converters.export.rlds_export import export_rlds
from converters.job.convert import convert
from converters.mapping.mapping_registry import find_mapping, registered
from converters.mapping.standardize import SourceMapping
from converters.sources.open_source import open_source
from converters.sources.source import Source
from pipeline.data.dataset import open_dataset
from pipeline.data.dataset_writer import write_manifest
from pipeline.errors import DataError
from train.evaluate.libero.suites import INITIAL_STATES

NOTES = {INITIAL_STATES: "libero_spatial task 0: 0 1; libero_object task 5: 7", "seed": "3"}
EDIT = '2026-11-30 instruction: "open" -> "close"'

Way = tuple[Callable[[Path, Path], Path], Callable[[Source], SourceMapping], str]
RLDS: Way = (
    lambda dataset, out: export_rlds(open_dataset(dataset), str(out)),
    lambda source: registered("libero"),
    "octograin.json",
)
LEROBOT: Way = (
    lambda dataset, out: export_lerobot(open_dataset(dataset), str(out)),
    find_mapping,
    "meta/octograin.json",
)


@pytest.fixture
def noted(mini_dataset: Path, tmp_path: Path) -> Path:
    """A dataset whose provenance describes the recording, a conversion and an edit."""
    directory = shutil.copytree(mini_dataset, tmp_path / "noted")
    dataset = open_dataset(directory)
    provenance = {**dataset.manifest.provenance, **NOTES, "edit_1": EDIT, "episodes": "0:4 of 9"}
    manifest = dataclasses.replace(dataset.manifest, provenance=provenance)
    write_manifest(epath.Path(directory), manifest, dict(dataset.statistics))
    return directory


@pytest.mark.parametrize("way", [RLDS, LEROBOT], ids=["rlds", "lerobot"])
def test_an_export_hands_on_what_is_known_of_the_recording_alone(
    noted: Path, tmp_path: Path, way: Way
) -> None:
    export, mapping, own = way
    exported = export(noted, tmp_path / "exported")
    source = open_source(str(exported))
    convert(source, tmp_path / "again", mapping(source))
    provenance = open_dataset(tmp_path / "again").manifest.provenance
    assert {name: provenance[name] for name in NOTES} == NOTES
    # Of another conversion, and of what is no edit of this dataset.
    assert not {"edit_1", "episodes"} & provenance.keys()
    (exported / own).write_text(json.dumps({"provenance": {"seed": 3}}))
    with pytest.raises(DataError, match=r"octograin\.json: .* found provenance {'seed': 3}"):
        open_source(str(exported))
    (exported / own).write_text("[")
    with pytest.raises(DataError, match=r"octograin\.json: .*a JSON object"):
        open_source(str(exported))
