"""Formats names of features and of their dimensions for display."""

import numpy as np

from pipeline.data.schema import Feature

_UNITS = {unit: unit for unit in ("rad", "m", "cm", "mm", "s", "ms", "kg")} | {
    "rad_s": "rad/s",
    "deg_s": "°/s",
    "m_s": "m/s",
    "m_s2": "m/s²",
    "deg": "°",
    "hz": "Hz",
    "n": "N",
    "nm": "N m",
}
"""Units by the last words of a dimension's name; the longest match is used."""


def short_name(key: str) -> str:
    """Removes `observation/` from the key of a feature."""
    return key.removeprefix("observation/")


def dim_names(feature: Feature) -> tuple[str, ...]:
    """Names each value of a step, in the order of the flattened shape.

    (2), dims x_m y_m    x_m y_m
    (2), no dims         [0] [1]
    (2, 2), dims u v     [0] u, [0] v, [1] u, [1] v
    ()                   one empty name
    """
    has_dims = bool(feature.shape) and len(feature.dims) == feature.shape[-1]
    names = []
    for place in np.ndindex(*feature.shape):
        numbers, last = (place[:-1], feature.dims[place[-1]]) if has_dims else (place, "")
        names.append(f"{list(numbers)} {last}".strip() if numbers else last)
    return tuple(names)


def split_unit(name: str) -> tuple[str, str]:
    """Splits a dimension's name into (label, unit); the unit is empty if there is none.

    rz_rad           rz, rad
    gripper_left_m   gripper left, m
    dx               dx, ""
    """
    words = name.split("_")
    # At most two words are a unit, and one is left for the label.
    for start in range(max(1, len(words) - 2), len(words)):
        unit = _UNITS.get("_".join(words[start:]).lower())
        if unit is not None:
            return " ".join(words[:start]), unit
    return " ".join(words), ""
