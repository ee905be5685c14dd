"""What describes an exported LeRobot dataset: the files of `meta` but for the episodes' own."""

import json
import pathlib

import xxhash

from converters.export.lerobot.lerobot_columns import ExportedSchema
from converters.export.lerobot.lerobot_episodes import DATA, VIDEOS, EpisodeWriter
from converters.export.lerobot.parquet_files import DATA_MB, FILES_PER_CHUNK, write_tasks
from converters.export.lerobot.return_mapping import failed_of_export, return_mapping
from converters.export.lerobot.video_writer import VIDEO_MB
from converters.lerobot.lerobot_info import OWN_FILE
from converters.mapping.mapping_registry import OWN_MAPPING
from converters.sources.recording_notes import PROVENANCE
from pipeline.data.dataset import Dataset
from pipeline.files import dump_json, to_json_values

_EDITABLE = (".json", ".toml")


def write_meta(
    directory: pathlib.Path, dataset: Dataset, schema: ExportedSchema, written: EpisodeWriter
) -> None:
    """Writes the files of `meta`, after all episodes.

    Args:
      directory: The LeRobot directory.
      dataset: What is exported.
      schema: What is exported of it.
      written: Wrote the episodes.
    """
    manifest = dataset.manifest
    has_videos = any(one.storage == "video" for one in schema.features)
    info = {
        "codebase_version": "v3.0",
        "fps": written.fps,
        "features": written.declarations,
        "total_episodes": written.num_episodes,
        "total_frames": written.num_steps,
        "total_tasks": len(written.tasks),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "data_path": DATA,
        "video_path": VIDEOS if has_videos else None,
        "robot_type": manifest.provenance.get("robot_type"),
        "splits": {"train": f"0:{written.num_episodes}"},
    }
    meta = directory / "meta"
    write_tasks(meta / "tasks.parquet", written.tasks)
    (meta / "info.json").write_text(json.dumps(info, indent=4) + "\n", encoding="utf-8")
    statistics = json.dumps(written.statistics.summaries(), indent=4)
    (meta / "stats.json").write_text(statistics + "\n", encoding="utf-8")
    mapping = return_mapping(manifest, schema)
    (directory / OWN_MAPPING).write_text(mapping, encoding="utf-8")
    # Last: it lists the others.
    files = {
        path.relative_to(directory).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    own = {
        "name": manifest.name,
        PROVENANCE: dict(manifest.provenance),
        "licences": dict(manifest.licences),
        "skipped_episodes": [to_json_values(one) for one in manifest.skipped_episodes],
        "excluded_episodes": list(manifest.excluded_episodes),
        "failed_episodes": failed_of_export(manifest),
        "left_out": list(schema.left_out),
        "files": {name: path.stat().st_size for name, path in files.items()},
        # Of texts alone, which a person edits: an edit may keep the size.
        "checksums": {
            name: checksum_of(path) for name, path in files.items() if path.suffix in _EDITABLE
        },
    }
    (directory / OWN_FILE).write_text(dump_json(own), encoding="utf-8")


def checksum_of(path: pathlib.Path) -> str:
    """Returns the checksum of a small file as `meta/octograin.json` lists it."""
    return xxhash.xxh3_128_hexdigest(path.read_bytes())
