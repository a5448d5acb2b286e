"""Line and scatter charts as inline SVG: text and colours are the page's style, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

__all__ = ["MOST_NAMES", "Points", "line_chart", "scatter_chart"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 112, 34, 46
_NAMES_WIDTH, _LONGEST_NAME = 164, 20  # of a scatter chart: pixels and letters
_MOST_POINTS = 400
_LINE_GAP = 17.0
_COLOURS = 6
MOST_NAMES = 12
# Marks of about the same area around the origin.
_SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5.5l5 9h-10z",
    "M0-5.7l5.7 5.7-5.7 5.7-5.7-5.7z",
)


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
        parts.append(_rule(across, up(target), "axis", ' stroke-dasharray="3 4"'))
        parts.append(_text(_LEFT + 6, up(target) - 6, f"target {_number(target)}"))
    heights = _spread([up(points[-1][1]) for points in lines.values()])
    for index, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        end = across(points[-1][0]) + 8
        parts.append(f'<polyline class="series" style="stroke:var(--s{index})" points="{path}"/>')
        parts.append(_text(end, heights[index] + 4.5, name, f' class="name" style="fill:var(--s{index})"'))
    return _svg(parts, f"{y_label} against {x_label}: {', '.join(lines)}")


def scatter_chart(
    marks: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points] | None = None,
    log_x: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    """One SVG element: what each name reaches, listed by height at the right.

    marks  name -> points that belong together, joined by a thin line: the first is filled, the others are hollow; a
           name without points is not drawn, but keeps its sign, so that charts of the same names agree
    lines  name -> a curve to hold them against, dashed; it does not widen the axes, and is cut off where they end
    level  a named height, as a dashed line across

    Raises `ValueError` where there are no points, for those that cannot be drawn (not finite; not positive on a
    logarithmic axis), and for more names than there is room for. A curve of which nothing lies inside is left out.
    """
    lines = lines or {}
    if not any(marks.values()) or len(marks) + len(lines) > MOST_NAMES:
        raise ValueError(
            f"{len(marks)} marks and {len(lines)} lines: a chart takes up to {MOST_NAMES}, and needs a point"
        )
    if marks.keys() & lines.keys():
        raise ValueError(f"{sorted(marks.keys() & lines.keys())} name both marks and lines: rename one of them")
    for name, points in marks.items():
        if not all(math.isfinite(x) and math.isfinite(y) and (x > 0 or not log_x) for x, y in points):
            raise ValueError(f"mark {name!r} at {list(points)}: expected finite{' positive' * log_x} places to draw")
    xs, ys = ([point[axis] for points in marks.values() for point in points] for axis in (0, 1))
    ys += [] if level is None else [level[1]]
    ticks = _log_ticks(min(xs), max(xs)) if log_x else _ticks(min(xs), max(xs), 5)
    across = _Scale(ticks, _LEFT, _WIDTH - _NAMES_WIDTH, log_x)
    up = _Scale(_ticks(min(ys), max(ys), 5), _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(across, up, x_label, y_label)
    if level is not None:
        # At the right, where marks of many bits are well above the level.
        parts.append(_rule(across, up(level[1]), "axis", ' stroke-dasharray="3 4"'))
        parts.append(_text(across.end, up(level[1]) - 6, f"{level[0]} {level[1]:.4g}", ' text-anchor="end"'))
    curves = {name: kept for name, points in lines.items() if len(kept := _inside(points, across, up)) > 1}
    for number, points in enumerate(curves.values()):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="axis" fill="none" stroke-dasharray="{_dash(number)}" points="{path}"/>')
    for number, (name, points) in enumerate(marks.items()):
        parts.append(_group(number, name, [(across(x), up(y)) for x, y in points], points))
    drawn = {name: points for name, points in {**marks, **curves}.items() if points}
    heights = dict(zip(drawn, _spread([up(max(y for _, y in points)) for points in drawn.values()]), strict=True))
    parts += _names(list(marks), list(curves), heights)
    where = "; ".join(f"{name} {', '.join(map(_place, points))}" for name, points in marks.items() if points)
    return _svg(parts, f"{y_label} against {x_label}: {where}{''.join(f'; line: {name}' for name in curves)}")


def _inside(points: Points, across: _Scale, up: _Scale) -> Points:
    """The part of a curve between the ends of both axes, to a small share of a segment."""
    shares = [number / 32 for number in range(33)]
    fine = [(a[0] + s * (b[0] - a[0]), a[1] + s * (b[1] - a[1])) for a, b in pairwise(points) for s in shares]
    return [(x, y) for x, y in fine if across.ticks[0] <= x <= across.ticks[-1] and up.ticks[0] <= y <= up.ticks[-1]]


def _group(number: int, name: str, places: Points, points: Points) -> str:
    """The marks of one name, joined."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    joined = f'<polyline fill="none" stroke-width="1" style="stroke:var(--s{number % _COLOURS})" points="{path}"/>'
    drawn = [
        f"<g><title>{escape(name)}: {_place(point)}</title>{_sign(number, *place, filled=index == 0)}</g>"
        for index, (place, point) in enumerate(zip(places, points, strict=True))
    ]
    return joined * (len(places) > 1) + "".join(drawn[::-1])  # the filled one on top


def _sign(number: int, x: float, y: float, *, filled: bool = True) -> str:
    """Colour and shape change together, so that neighbours differ in both."""
    colour = f"var(--s{number % _COLOURS})"
    inner = colour if filled else "var(--paper)"
    shape = _SHAPES[number % len(_SHAPES)]
    return f'<path transform="translate({x:.1f} {y:.1f})" d="{shape}" style="stroke:{colour};fill:{inner}"/>'


def _place(point: tuple[float, float]) -> str:
    return f"{point[1]:.4g} at {point[0]:.4g}"


def _names(marks: Sequence[str], curves: Sequence[str], heights: Mapping[str, float]) -> list[str]:
    """The list at the right: a sign and a name each, of those that have a height."""
    left = _WIDTH - _NAMES_WIDTH + 20
    parts = [_sign(number, left, heights[name]) for number, name in enumerate(marks) if name in heights]
    for number, name in enumerate(curves):
        height = heights[name]
        dash = f' stroke-dasharray="{_dash(number)}"'
        parts.append(f'<line class="axis"{dash} x1="{left - 7}" x2="{left + 7}" y1="{height:.1f}" y2="{height:.1f}"/>')
    for name, height in heights.items():
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        parts.append(_text(left + 12, height + 4.5, short))
    return parts


def _dash(number: int) -> str:
    return ("6 3", "2 3")[number % 2]


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _clean(name: str, points: Points, log_y: bool) -> Points:
    """Drawable points, thinned evenly to a few hundred; the last is always kept."""
    drawn = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
    if not drawn:
        raise ValueError(f"series {name!r} has no finite{' positive' if log_y else ''} point to draw")
    stride = -(-len(drawn) // _MOST_POINTS)
    return drawn[:-1:stride] + drawn[-1:]


def _axes(across: _Scale, up: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = [_rule(across, up(tick), "axis" if tick == up.ticks[0] else "rule") for tick in up.ticks]
    parts += [_text(_LEFT - 10, up(tick) + 4.5, _number(tick), ' text-anchor="end"') for tick in up.ticks]
    base = _HEIGHT - _BOTTOM + 20
    parts += [_text(across(tick), base, _number(tick), ' text-anchor="middle"') for tick in across.ticks]
    middle = (across.start + across.end) / 2
    return [*parts, _text(middle, base + 21, x_label, ' text-anchor="middle"'), _text(0, 13, y_label)]


def _rule(across: _Scale, y: float, kind: str, extra: str = "") -> str:
    return f'<line class="{kind}"{extra} x1="{_LEFT}" x2="{across.end:g}" y1="{y:.1f}" y2="{y:.1f}"/>'


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
