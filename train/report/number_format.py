"""Formats numbers for the reader."""

_LARGE = 1000.0
"""Smallest number whose thousands are separated."""
_SMALLEST_SHARE = 0.0005
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def three_digits(value: float) -> str:
    """Formats a number like `0.0412`, `3.50` or `1.20e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:#.3g}".rstrip(".")
    return text.replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units, like `2 h 41 min`; below a minute like `8.2 s`."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min {int(seconds % _MINUTE_S)} s"
    if seconds < _DAY_S:
        return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"
    return f"{int(seconds // _DAY_S)} d {int(seconds % _DAY_S // _HOUR_S)} h"


def count(number: int, noun: str) -> str:
    """Formats a count like `1 step` or `5,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: float) -> str:
    """Formats a number like `1`, `0.5` or `3e-5`, with a typographic minus sign."""
    text = f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:g}".replace("e-0", "e-")
    return text.replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """Formats a fraction like `12.5 %`; as `< 0.1 %` if it would round to zero."""
    return "< 0.1 %" if 0 < share < _SMALLEST_SHARE else f"{100 * share:.1f} %"
