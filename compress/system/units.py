"""Figures as people read them: the same on the page and in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NOTHING = "–"


def in_bytes(count: float | None) -> str:
    """Decimal units, three digits: "13.2 MB"."""
    return NOTHING if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB"), " ")


def in_parameters(count: float | None) -> str:
    """A count of parameters, three digits: "12.6 M"."""
    return NOTHING if count is None else _scaled(count, ("", "K", "M", "B", "T"), " ").strip()


def _scaled(count: float, units: tuple[str, ...], space: str) -> str:
    for unit in units[:-1]:
        if abs(count) < 999.5:
            digits = f"{count:.0f}" if unit == units[0] else three_digits(count)
            return f"{digits}{space}{unit}"
        count /= 1000
    return f"{three_digits(count)}{space}{units[-1]}"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: "3.72", "37.2", "372"."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def in_time(seconds: float | None) -> str:
    """ "340 ms", "4.2 s", "3 min 05 s", "2 h 07 min"."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def roughly(seconds: float | None) -> str:
    """An estimate of a time, one or two digits: "10 s", "25 min", "3 h"."""
    if seconds is None:
        return NOTHING
    if seconds < 90:
        return f"{max(5 * round(seconds / 5), 5)} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{round(minutes) if minutes < 10 else 5 * round(minutes / 5)} min"
    return f"{round(minutes / 60)} h"


def figure(value: float | None, digits: int = 2) -> str:
    """A measured figure with fixed decimals; a dash for none, "∞" for infinity."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{digits}f}".replace("-", "−")


def significant(value: float | None) -> str:
    """A figure of any size with three significant digits and no exponent: "0.00123", "1.23", "12,300"."""
    if value is None or not math.isfinite(value):
        return figure(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(max(0, 2 - magnitude), 9)}f}".replace("-", "−")


def divergence(value: float | None) -> str:
    """KL in nats: two significant digits or four decimals, whichever says more."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    # KL is not negative; a rounding error below zero still shows its sign.
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(4, 1 - magnitude), 9)}f}" if abs(value) < 10 else f"{value:.2f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage: "96.3%"."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}%"


def error_percent(error: float | None) -> str:
    """A relative error as a percentage with two significant digits: "0.037%"."""
    if error is None or not math.isfinite(error):
        return NOTHING
    if error <= 0:
        return "0%"
    magnitude = math.floor(math.log10(100 * error))
    return f"{100 * error:.{min(max(0, 1 - magnitude), 9)}f}%"


def plain_number(value: float) -> str:
    """A round number with as many decimals as it has, without an exponent below 1: "0.0001", "20"."""
    return f"{value:.10f}".rstrip("0").rstrip(".") if value < 1 else f"{value:g}"


def rate(per_second: float | None) -> str:
    """Tokens per second, without decimals from 100 on."""
    if per_second is None:
        return NOTHING
    return f"{per_second:,.0f}" if per_second >= 99.95 else f"{per_second:.1f}"


def role(name: str, block: int | None) -> str:
    """What a weight is within its block, the numbers of block and expert left out.

    "model.layers.3.mlp.experts.7.gate_proj" of block 3 → "mlp.experts.gate_proj"; outside the blocks, the name.
    """
    if block is None:
        return name
    inside = re.sub(rf"^.*?\.{block}\.", "", name, count=1) if f".{block}." in name else name
    return ".".join(part for part in inside.split(".") if not part.isdigit()) or name


def short_roles(roles: list[str]) -> dict[str, str]:
    """Role → its shortest ending that no other role has: "self_attn.q_proj" → "q_proj"."""
    unique = list(dict.fromkeys(roles))
    short: dict[str, str] = {}
    for role in unique:
        parts = role.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        short[role] = next(
            (
                end
                for end in endings
                if sum(other == end or other.endswith("." + end) for other in unique) == 1
            ),
            role,
        )
    return short


def capitalized(sentence: str) -> str:
    """A sentence with a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def were(names: Sequence[str]) -> str:
    """The verb after names."""
    return "was" if len(names) == 1 else "were"
