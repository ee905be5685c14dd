"""The mapping in `meta/octograin.toml`, which makes an exported LeRobot dataset a dataset again."""

import dataclasses
from collections.abc import Iterator

from converters.export.lerobot.lerobot_columns import (
    BOOKKEEPING,
    ExportedFeature,
    ExportedSchema,
    text_name,
)
from converters.lerobot.lerobot_features import TASK, key_of
from converters.mapping.instruction_guess import quoted
from pipeline.data.conventions import Conventions
from pipeline.data.manifest import Manifest
from pipeline.data.schema import EPISODES, SOURCE_ID
from pipeline.terminal import ranges


def return_mapping(manifest: Manifest, schema: ExportedSchema) -> str:
    """Returns a mapping in TOML from an exported dataset back to the features that it came from.

    Args:
      manifest: Manifest of the dataset that was exported.
      schema: What was exported of it.
    """
    has_task = any(manifest.tasks)
    ignored = [f"steps/{name}" for name in BOOKKEEPING]
    lines = [
        "# Conventions and features of this dataset. The way back:",
        "# octograin convert THIS_FOLDER DST",
        *(f"# {line}" for line in failed_lines(manifest)),
        f"task = {quoted(TASK if has_task else '')}",
        *_source_id_lines(schema),
        f"ignore = [{', '.join(map(quoted, ignored if has_task else [*ignored, TASK]))}]",
        *_licence_lines(manifest, schema),
        "",
        *_conventions_lines(manifest.conventions),
    ]
    for one in schema.features:
        lines += _feature_lines(one)
    for text in schema.texts:
        if text.key != SOURCE_ID:
            lines += ["", "[[features]]", f"key = {quoted(text.key)}"]
            lines += [f"source = {quoted(text_name(text))}"]
    return "\n".join(lines) + "\n"


def failed_of_export(manifest: Manifest) -> list[int] | None:
    """Returns the episodes declared as failed, by their numbers in the export; None: unknown."""
    if manifest.failed_episodes is None:
        return None
    excluded = {*manifest.excluded_episodes}
    kept = [index for index in range(len(manifest.episode_lengths)) if index not in excluded]
    return [number for number, index in enumerate(kept) if index in manifest.failed_episodes]


def failed_lines(manifest: Manifest) -> list[str]:
    """Returns the command that declares the same episodes as failed again, if any are declared."""
    failed = failed_of_export(manifest)
    if failed is None:
        return []
    return [f"octograin edit DST --failed {ranges(failed, longest=None) or 'none'}"]


def _source_id_lines(schema: ExportedSchema) -> list[str]:
    named = [text for text in schema.texts if text.key == SOURCE_ID]
    return [f"source_id = {quoted(text_name(text))}" for text in named]


def _licence_lines(manifest: Manifest, schema: ExportedSchema) -> list[str]:
    columns = {one.column.name for one in schema.features} - {EPISODES}
    licence = manifest.licences[EPISODES]
    others = [
        f"{quoted(column)} = {quoted(manifest.licences[column])}"
        for column in sorted(columns)
        if manifest.licences[column] != licence
    ]
    lines = [f"licence = {quoted(licence)}"]
    return [*lines, f"column_licences = {{ {', '.join(others)} }}"] if others else lines


def _conventions_lines(conventions: Conventions) -> Iterator[str]:
    yield "[conventions]"
    # The steps that the conversion removed are not in the export.
    is_kept = conventions.no_ops == "kept"
    yield f"no_ops = {quoted('kept' if is_kept else 'removed_at_source')}"
    yield f"image_orientation = {quoted(conventions.image_orientation)}"
    yield f"rotation = {quoted(conventions.rotation)}"
    yield f"control_frequency_hz = {float(conventions.control_frequency_hz)!r}"
    if conventions.target_poses:
        yield "target_poses = true"
    if conventions.gripper_dim is not None:
        yield f"gripper_dim = {conventions.gripper_dim}"
        yield f"gripper_open = {float(conventions.gripper_open)!r}"
        yield f"gripper_close = {float(conventions.gripper_close)!r}"
    for table, parts in (
        ("grippers", conventions.grippers),
        ("rotations", conventions.rotations),
    ):
        for part in parts:
            yield ""
            yield f"[[conventions.{table}]]"
            for field in dataclasses.fields(part):
                value = getattr(part, field.name)
                yield f"{field.name} = {quoted(value) if isinstance(value, str) else repr(value)}"


def _feature_lines(one: ExportedFeature) -> list[str]:
    feature, source = one.feature, quoted(key_of(one.name))
    # LeRobot holds a vector of one number as a number.
    is_single = one.storage == "values" and feature.shape == (1,)
    is_float = one.dtype == "float32"
    lines = ["", "[[features]]", f"key = {quoted(feature.key)}"]
    lines.append(f"from = [{source}]" if is_single and is_float else f"source = {source}")
    if is_single and not is_float:
        lines.append('compute = [{ op = "reshape", shape = [1] }]')
    if one.column.name != EPISODES:
        lines.append(f"column = {quoted(one.column.name)}")
    if feature.dims:
        lines.append(f"dims = [{', '.join(map(quoted, feature.dims))}]")
    if one.storage == "depth":
        lines += ["depth = true", 'depth_unit = "mm"']
    return lines
