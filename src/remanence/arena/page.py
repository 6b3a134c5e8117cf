"""The report as one HTML page: tables and curves. It loads nothing, and fits a phone, a bright and a dark screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .report import CellResults, Table, interval, of_task, tables

_WIDTH, _HEIGHT = 640, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 20, 34, 58
_MARKS = "osdtv"
_DISTANCE = "tokens between"  # evidence and question
# Colours that can be told apart with most kinds of colour blindness (after Okabe and Ito 2008), on bright and on dark.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f", "#8250c4")

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171b; --text: #e6e9ec; --soft: #9aa4af; --line: #363c44; --band: #1d2126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, figcaption { color: var(--soft); font-size: .9rem; margin: .4rem 0; }
nav a { color: inherit; margin-right: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; min-width: 5rem; vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
tbody tr:hover td { background: var(--band); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 19px system-ui, sans-serif; } svg .grid { stroke: var(--line); stroke-width: 1; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; padding: 0;
  margin: .4rem 0; list-style: none; }
.key svg { display: inline-block; width: 30px; height: 12px; vertical-align: middle; }
"""


@dataclass(frozen=True)
class Line:
    """Points of one system. low, high: of each point's interval, if it has one."""

    name: str
    points: list[tuple[float, float]]
    spans: list[tuple[float, float]] | None = None


def page(cells: Sequence[CellResults], against: str = "none") -> str:
    """The whole report.

    Args:
        cells: of one or more tasks.
        against: the system that others are tested against.
    """
    names = list(dict.fromkeys(cell.title for cell in cells if cell.condition == "normal"))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    links = " ".join(f'<a href="#{_anchor(task)}">{escape(task)}</a>' for task in tasks)
    parts = [_task(of_task(cells, task), task, names, against) for task in tasks]
    about = cells[0].about
    settings = ", ".join(f"{k} {v}" for k, v in about["settings"].items() if v not in (None, [], ""))
    version = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Memories compared</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Memories compared</h1>\n<p>{escape(settings)}</p><p>{escape(version)}</p>\n<nav>{links}</nav>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _anchor(task: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in task)


def _task(cells: Sequence[CellResults], task: str, names: list[str], against: str) -> str:
    """A task's curves and tables."""
    own = [cell for cell in cells if cell.condition == "normal"]
    accuracy, latency, store = [], [], []
    for cell in own:
        by: dict[int, list[float]] = {}
        for r in cell.asked:
            by.setdefault(r.distance, []).append(r.score)
        spans = [interval([r for r in cell.asked if r.distance == d]) for d in sorted(by)]
        points = [(float(d), 100 * sum(by[d]) / len(by[d])) for d in sorted(by)]
        accuracy.append(Line(cell.title, points, [(100 * low, 100 * high) for low, high in spans]))
        latency.append(Line(cell.title, [(float(d), 1000 * s) for d, s in cell.latency().items()]))
        if cell.asked and cell.cost["bytes"] > 0:
            mean = 100 * sum(r.score for r in cell.asked) / len(cell.asked)
            store.append(Line(cell.title, [(cell.cost["bytes"], mean)]))
    figures = []
    if any(len(line.points) > 1 for line in accuracy):
        figures.append(_figure("Accuracy against distance", accuracy, names, _DISTANCE, "%", logarithmic="x"))
        figures.append(_figure("Latency against distance", latency, names, _DISTANCE, "ms", logarithmic="xy"))
    if store:
        figures.append(_figure("Accuracy against storage", store, names, "bytes a token", "%", logarithmic="x"))
    shown = "".join(f"<h3>{escape(t.title)}</h3>{_table(t)}" for t in tables(cells, against))
    key = "".join(f"<li>{_swatch(names.index(c.title))} {escape(c.title)}</li>" for c in own)
    curves = f'<ul class="key">{key}</ul><div class="curves">{"".join(figures)}</div>' if figures else ""
    return f'<h2 id="{_anchor(task)}">{escape(task)}</h2>\n{curves}\n{shown}'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'


# Curves ---------------------------------------------------------------------------------------------------------------


def _figure(
    title: str, lines: Sequence[Line], names: list[str], x_name: str, y_name: str, *, logarithmic: str = ""
) -> str:
    """A drawing with a title. logarithmic: of "x" and "y", which axes are."""
    xs = [x for line in lines for x, _ in line.points if x > 0 or "x" not in logarithmic]
    ys = [y for line in lines for _, y in line.points if y > 0 or "y" not in logarithmic]
    if not xs or not ys:
        return ""
    to_x, marks_x = _axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT, "x" in logarithmic)
    low, high = (min(ys), max(ys)) if "y" in logarithmic else (0.0, max(100.0 if y_name == "%" else 0.0, max(ys)))
    to_y, marks_y = _axis(low, high, _HEIGHT - _BOTTOM, _TOP, "y" in logarithmic)
    if x_name == _DISTANCE:  # what was measured
        marks_x = sorted(set(xs))
    parts = []
    for value in marks_x:
        x = to_x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 22}" text-anchor="middle">{_number(value)}</text>')
    for value in marks_y:
        y = to_y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 6:.1f}" text-anchor="end">{_number(value)}</text>')
    for line in lines:
        parts.append(_drawn(line, names.index(line.name), to_x, to_y, logarithmic))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text x="4" y="18">{escape(y_name)}</text>')
    label = escape(f"{title}: " + ", ".join(line.name for line in lines))
    return (
        f'<figure><h3>{escape(title)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        + "".join(parts)
        + "</svg></figure>"
    )


def _drawn(
    line: Line, number: int, to_x: Callable[[float], float], to_y: Callable[[float], float], logarithmic: str
) -> str:
    """A system's points, the line through them, and their intervals."""
    fit = [
        i for i, (x, y) in enumerate(line.points)
        if (x > 0 or "x" not in logarithmic) and (y > 0 or "y" not in logarithmic)
    ]  # fmt: skip
    places = [(to_x(line.points[i][0]), to_y(line.points[i][1])) for i in fit]
    colour, parts = _COLOURS[number % len(_COLOURS)], []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{_dash(number)}/>')
    for i, (x, y) in zip(fit, places, strict=True):
        span = line.spans[i] if line.spans else None
        told = f"{line.name}: {_number(line.points[i][0])}, {line.points[i][1]:.1f}"
        if span is not None:
            told += f" ({span[0]:.1f} to {span[1]:.1f})"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{to_y(span[0]):.1f}" y2="{to_y(span[1]):.1f}" '
                f'stroke="{colour}" stroke-opacity="0.4" stroke-width="3"/>'
            )
        parts.append(f"<g><title>{escape(told)}</title>{_mark(number, x, y)}</g>")
    return "".join(parts)


def _dash(number: int) -> str:
    """Systems whose colours come again are told apart by dashes."""
    round_ = number // len(_COLOURS)
    return "" if round_ == 0 else f' stroke-dasharray="{2 + 4 * round_} {2 + round_}"'


def _mark(number: int, x: float, y: float, size: float = 4.5) -> str:
    """The sign of a system at a place."""
    colour, kind, s = _COLOURS[number % len(_COLOURS)], _MARKS[number // len(_COLOURS) % len(_MARKS)], size
    if kind == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}" fill="{colour}"/>'
    shapes = {
        "s": [(-s, -s), (s, -s), (s, s), (-s, s)], "d": [(0, -s - 1), (s + 1, 0), (0, s + 1), (-s - 1, 0)],
        "t": [(0, -s - 1), (s, s), (-s, s)], "v": [(0, s + 1), (s, -s), (-s, -s)],
    }  # fmt: skip
    path = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in shapes[kind])
    return f'<polygon points="{path}" fill="{colour}"/>'


def _swatch(number: int) -> str:
    """A system's line and sign, for the key."""
    colour = _COLOURS[number % len(_COLOURS)]
    line = f'<line x1="0" x2="30" y1="6" y2="6" stroke="{colour}" stroke-width="2"{_dash(number)}/>'
    return f'<svg viewBox="0 0 30 12" aria-hidden="true">{line}{_mark(number, 15, 6)}</svg>'


def _axis(
    low: float, high: float, start: float, end: float, logarithmic: bool
) -> tuple[Callable[[float], float], list[float]]:
    """Where a value lies on an axis, and which values are marked."""
    if logarithmic:
        first, last = math.log10(low), math.log10(high)
        if last - first < 0.3:
            first, last = first - 0.2, last + 0.2
        room = 0.04 * (last - first)
        first, last = first - room, last + room
        steps = (1,) if last - first > 3 else (1, 2, 5)
        marks = [s * 10.0**e for e in range(math.floor(first), math.ceil(last) + 1) for s in steps]
        marks = [m for m in marks if first <= math.log10(m) <= last]
        return lambda v: start + (math.log10(v) - first) / (last - first) * (end - start), marks
    high = high if high > low else low + 1
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 2.5, 5, 10) if (high - low) / (step * f) <= 5)
    marks = [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
    return lambda v: start + (v - low) / (high - low) * (end - start), marks


def _number(value: float) -> str:
    """A short number."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
