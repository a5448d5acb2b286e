"""Line charts as inline SVG: text and colours come from the page's style, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

__all__ = ["Points", "line_chart"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 112, 34, 46
_MOST_POINTS = 400
_LINE_GAP = 17.0
_COLOURS = 6


@dataclass(frozen=True)
class _Scale:
    """From a value to a place between `start` and `end` in pixels; the ticks span the scale."""

    ticks: tuple[float, ...]
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_chart(
    series: Mapping[str, Points], *, x_label: str, y_label: str, log_y: bool = False, target: float | None = None
) -> str:
    """One SVG element; every line carries its name at its right end, `target` is a dashed level.

    Points that are not finite (or not positive on a logarithmic axis) are left out. Raises `ValueError` where a series
    has no point left, or where there are more than six.
    """
    if not 1 <= len(series) <= _COLOURS:
        raise ValueError(f"series has {len(series)} lines: a chart takes 1 to {_COLOURS}; split it")
    lines = {name: _clean(name, points, log_y) for name, points in series.items()}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points] + ([] if target is None else [target])
    across = _Scale(_ticks(min(xs), max(xs), 5), _LEFT, _WIDTH - _RIGHT)
    ticks = _log_ticks(min(ys), max(ys)) if log_y else _ticks(min(ys), max(ys), 5)
    up = _Scale(ticks, _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = _axes(across, up, x_label, y_label)
    if target is not None:
        parts.append(_rule(up(target), "axis", ' stroke-dasharray="3 4"'))
        parts.append(_text(_LEFT + 6, up(target) - 6, f"target {_number(target)}"))
    heights = _spread([up(points[-1][1]) for points in lines.values()])
    for index, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        end = across(points[-1][0]) + 8
        parts.append(f'<polyline class="series" style="stroke:var(--s{index})" points="{path}"/>')
        parts.append(_text(end, heights[index] + 4.5, name, f' class="name" style="fill:var(--s{index})"'))
    label = escape(f"{y_label} against {x_label}: {', '.join(lines)}")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _clean(name: str, points: Points, log_y: bool) -> Points:
    """Drawable points, thinned evenly to a few hundred; the last is always kept."""
    drawn = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
    if not drawn:
        raise ValueError(f"series {name!r} has no finite{' positive' if log_y else ''} point to draw")
    stride = -(-len(drawn) // _MOST_POINTS)
    return drawn[:-1:stride] + drawn[-1:]


def _axes(across: _Scale, up: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = [_rule(up(tick), "axis" if tick == up.ticks[0] else "rule") for tick in up.ticks]
    parts += [_text(_LEFT - 10, up(tick) + 4.5, _number(tick), ' text-anchor="end"') for tick in up.ticks]
    base = _HEIGHT - _BOTTOM + 20
    parts += [_text(across(tick), base, _number(tick), ' text-anchor="middle"') for tick in across.ticks]
    middle = (across.start + across.end) / 2
    return [*parts, _text(middle, base + 21, x_label, ' text-anchor="middle"'), _text(0, 13, y_label)]


def _rule(y: float, kind: str, extra: str = "") -> str:
    return f'<line class="{kind}"{extra} x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(text)}</text>'


def _ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose low and high."""
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten, or powers alone over more than three decades, that enclose low and high."""
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [factor * 10.0**power for power in powers for factor in factors]
    first = max(index for index, tick in enumerate(every) if tick <= low * 1.001)
    last = max(first + 1, min(index for index, tick in enumerate(every) if tick >= high * 0.999))
    return tuple(every[first : last + 1])


def _spread(heights: list[float]) -> list[float]:
    """Move names apart that would overlap, keeping their order; the whole stays inside the chart."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + _LINE_GAP)
    excess = max(0.0, placed[order[-1]] - (_HEIGHT - _BOTTOM))
    return [height - excess for height in placed]


def _number(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
