"""A mapping as a table: what becomes what, as it is printed before a conversion."""

import dataclasses
from collections.abc import Sequence

from converters.mapping.computed_source import ComputedSource, compute_source
from converters.mapping.mapped_features import FeatureMapping, Part
from converters.mapping.standardize import SourceMapping
from converters.operations.value_type import Operation
from converters.sources.source import Source
from pipeline.data.schema import Feature

_SHOWN_IGNORED = 8


def mapping_table(source: Source, mapping: SourceMapping) -> str:
    """The features with their types and what they are made of, the instruction, and what is kept.

    Raises:
      SchemaError: The mapping does not fit the source.
    """
    computed, plain = compute_source(source, mapping)
    schema = plain.fitted(computed).schema(computed)
    made = {feature.key: feature for _, feature in schema.features()}
    rows = [
        (feature.key, _type(made[feature.key]), _expression(feature))
        for feature in mapping.features
        if feature.key in made
    ]
    instruction = _instruction(mapping, plain.fitted(computed))
    rows.append(("instruction", "text" if instruction else "", instruction or "none"))
    # Features that the source lacks look at no step.
    ahead = computed.ahead if isinstance(computed, ComputedSource) else 0
    rows += _selection(mapping, ahead)
    rows += _left_out(source, mapping, plain, computed)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = (f"{name:{widths[0]}}  {type_:{widths[1]}}  {text}" for name, type_, text in rows)
    return "\n".join(lines) + "\n"


def _type(feature: Feature) -> str:
    return f"{feature.dtype}{list(feature.shape)}"


def _expression(feature: FeatureMapping) -> str:
    """What a feature is made of, such as `steps/action[0:6] + steps/action[6] > invert`."""
    joined = " + ".join(_part(part) for part in feature.parts)
    if feature.compute and len(feature.parts) > 1:
        joined = f"({joined})"
    return joined + _chain(feature.compute)


def _part(part: Part) -> str:
    if part.constant is not None:
        return f"{part.constant:g} x {part.width}"
    columns = f"[{part.columns}]" if part.columns else ""
    return part.source + columns + _chain(part.compute)


def _chain(operations: Sequence[Operation]) -> str:
    return "".join(f" > {_call(operation)}" for operation in operations)


def _call(operation: Operation) -> str:
    """An operation with those of its settings that differ from the default."""
    settings = []
    for field in dataclasses.fields(operation):  # pyright: ignore[reportArgumentType]
        value = getattr(operation, field.name)
        if field.name != "op" and value != field.default:
            settings.append(f"{field.name}={value!r}")
    return operation.op + (f"({', '.join(settings)})" if settings else "")


def _instruction(mapping: SourceMapping, plain: SourceMapping) -> str:
    text = mapping.instruction_from
    if text is not None:
        chosen = " or ".join(text.keys) + _chain(text.compute)
        return chosen + (f" or {text.default!r}" if text.default else "")
    if mapping.instruction:
        return repr(mapping.instruction)
    return plain.task


def _selection(mapping: SourceMapping, ahead: int) -> list[tuple[str, str, str]]:
    """Which steps and episodes are kept, where not all are."""
    steps = mapping.steps
    kept = [
        *([f"without the first {_steps(steps.drop_first)}"] if steps.drop_first else []),
        *([f"without the last {_steps(n)}"] if (n := max(steps.drop_last, ahead)) else []),
        *([f"those in {steps.ranges_file}"] if steps.ranges_file else []),
        *([f"one of every {steps.every}"] if steps.every > 1 else []),
    ]
    if steps.resample_from_hz is not None:
        target = mapping.conventions.control_frequency_hz
        kept.append(f"{steps.resample_from_hz:g} Hz to {target:g} Hz")
    rows = [("steps", "", ", ".join(kept))] if kept else []
    for condition in mapping.episodes:
        is_text = bool(condition.matches)
        test = f"matches {condition.matches!r}" if is_text else f"equals {condition.equals}"
        where = f" ({condition.at} step)" if condition.key.startswith("steps/") else ""
        verb = "kept" if condition.keep else "left out"
        rows.append(("episodes", "", f"{verb} where {condition.key} {test}{where}"))
    return rows


def _steps(number: int) -> str:
    return "step" if number == 1 else f"{number} steps"


def _left_out(
    source: Source, mapping: SourceMapping, plain: SourceMapping, computed: Source
) -> list[tuple[str, str, str]]:
    """The keys of the source of which nothing is stored."""
    taken = {key for feature in mapping.features for key in feature.sources}
    taken |= {plain.task_key, mapping.source_id, *(set(source.keys) - set(computed.keys))}
    keys = [key for key in source.keys if key not in taken]
    shown = ", ".join(keys[:_SHOWN_IGNORED])
    more = len(keys) - _SHOWN_IGNORED
    return [("left out", "", shown + (f" and {more} more" if more > 0 else ""))] if keys else []
