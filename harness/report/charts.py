"""The report's pictures as inline SVG: scores, gains, intervals, training curves, bars.

Colours are CSS classes, so that light, dark and print are the style sheet's business; shapes and positions say everything that colours
say. Numbers are formatted here and text is escaped by markupsafe. The module knows numbers and labels, nothing of runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from harness.report.compare import Interval


def _n(x: float) -> str:
    """A coordinate: one decimal, no trailing zero."""
    return f"{x:.1f}".removesuffix(".0")


def _tag(name: str, text: str | None = None, **attrs: object) -> Markup:
    """One element; `name` is a literal of this module, attributes and text are escaped."""
    parts = Markup("").join(
        Markup(' {}="{}"').format(k.rstrip("_").replace("_", "-"), v if not isinstance(v, float) else _n(v)) for k, v in attrs.items()
    )
    if text is None:
        return Markup("<{}{}/>").format(name, parts)
    return Markup("<{}{}>{}</{}>").format(name, parts, text, name)


def _svg(w: float, h: float, label: str, body: Iterable[Markup], cls: str = "chart") -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        cls, _n(w), _n(h), label, Markup("").join(body)
    )


def _axis_titles(w: float, h: float, margins: tuple[float, float, float, float], x: str, y: str) -> list[Markup]:
    """The names of both axes; `margins`: left, right, top, bottom of the plot."""
    left, right, top, bottom = margins
    middle = (top + h - bottom) / 2
    return [
        _tag("text", x, x=(left + w - right) / 2, y=h - 4, class_="tick mid title"),
        _tag("text", y, x=10.0, y=middle, class_="tick mid title", transform=f"rotate(-90 10 {_n(middle)})"),
    ]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within [low, high], about so many."""
    span = max(high - low, 1e-9)
    raw = span / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def signed(number: float | None, digits: int = 1) -> str:
    """A number of points with its sign, a true minus sign; an em dash for none."""
    if number is None:
        return "—"
    if math.isinf(number):
        return "+∞" if number > 0 else "−∞"
    text = f"{abs(number):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if number > 0 else '−'}{text}"


def short(number: float) -> str:
    """A tick label."""
    plain = number == 0 or 1e-3 <= abs(number) < 1e5
    return (f"{number:g}" if plain else f"{number:.0e}".replace("e-0", "e-").replace("e+0", "e")).replace("-", "−")


@dataclass(frozen=True)
class PaperScores:
    """The paper's numbers for one score chart, percent: base, aligned, and the margin around the aligned value."""

    base: float | None
    aligned: float | None
    margin: float


def score_domain(charts: Sequence[Sequence[Interval | None]], extra: Sequence[float]) -> tuple[float, float]:
    """One vertical scale for all score charts: whole tens around everything shown."""
    lows = [i.low for c in charts for i in c if i] + list(extra)
    highs = [i.high for c in charts for i in c if i] + list(extra)
    if not lows:
        return 0.0, 100.0
    return max(0.0, math.floor(min(lows) / 10 - 0.05) * 10.0), min(100.0, math.ceil(max(highs) / 10 + 0.05) * 10.0)


def score_chart(
    title: str,
    labels: Sequence[str],
    points: Sequence[Interval | None],
    domain: tuple[float, float],
    chance: float | None,
    ref: PaperScores | None,
) -> Markup:
    """Score by iteration with 95 % intervals, the chance line, and the paper's values where they may be shown."""
    w, h, left, right, top, bottom = 260.0, 186.0, 40.0, 40.0, 12.0, 38.0
    lo, hi = domain
    step = (w - left - right) / max(len(labels) - 1, 1)

    def x(index: int) -> float:
        return left + 8 + index * (step - 16 / max(len(labels) - 1, 1)) if len(labels) > 1 else (left + w - right) / 2

    def y(value: float) -> float:
        return top + (hi - min(max(value, lo), hi)) / (hi - lo) * (h - top - bottom)

    out = _axis_titles(w, h, (left, right, top, bottom), "Iteration", "Score, %")
    beside: list[tuple[float, str, str]] = []  # labels at the right edge: baseline, text, class
    for t in ticks(lo, hi):
        out += [
            _tag("line", x1=left, x2=w - right, y1=y(t), y2=y(t), class_="grid"),
            _tag("text", short(t), x=left - 6, y=y(t) + 3.5, class_="tick end"),
        ]
    if ref and ref.aligned is not None:
        a, m = ref.aligned, ref.margin
        out.append(_tag("rect", x=left, width=w - left - right, y=y(a + m), height=y(a - m) - y(a + m), class_="band"))
        out.append(_tag("line", x1=left, x2=w - right, y1=y(a), y2=y(a), class_="paper"))
        beside.append((y(a) + 3.5, "paper", "tick paper-t aside"))
    if chance is not None and lo <= chance <= hi:
        out.append(_tag("line", x1=left, x2=w - right, y1=y(chance), y2=y(chance), class_="chance"))
        beside.append((y(chance) + 3.5, "chance", "tick aside"))
    known = [(i, p) for i, p in enumerate(points) if p is not None]
    if len(known) > 1:
        out.append(_tag("polyline", points=" ".join(f"{_n(x(i))},{_n(y(p.value))}" for i, p in known), class_="trace"))
    for i, p in known:
        kind = "first" if i == 0 else "later"
        out.append(_tag("line", x1=x(i), x2=x(i), y1=y(p.low), y2=y(p.high), class_=f"whisker {kind}"))
        out.append(_tag("circle", cx=x(i), cy=y(p.value), r=4.0, class_=f"dot {kind}"))
    if ref and ref.base is not None:
        out.append(_diamond(x(0), y(ref.base), "diamond"))
    if known:
        beside.append((y(known[-1][1].value) + 4, f"{known[-1][1].value:.1f}", "value"))
    beside.sort()
    places = _apart([at for at, _, _ in beside], 13, h - bottom + 4)
    out += [_tag("text", text, x=w - right + 5, y=at, class_=cls) for at, (_, text, cls) in zip(places, beside, strict=True)]
    out += [_tag("text", s, x=x(i), y=h - 21, class_="tick mid") for i, s in enumerate(labels)]
    said = ", ".join(f"{labels[i]} {p.value:.1f} ({p.low:.1f} to {p.high:.1f})" for i, p in known) or "nothing measured"
    return _svg(w, h, f"{title}: {said}", out)


def _diamond(x: float, y: float, cls: str, r: float = 4.5) -> Markup:
    return _tag("polygon", points=f"{_n(x)},{_n(y - r)} {_n(x + r)},{_n(y)} {_n(x)},{_n(y + r)} {_n(x - r)},{_n(y)}", class_=cls)


def points_domain(values: Iterable[float | None]) -> tuple[float, float]:
    """A symmetric-enough scale of points that holds zero and every value, padded."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    lo, hi = min([0.0, *known]), max([0.0, *known])
    pad = max(0.06 * (hi - lo), 0.5)
    return lo - pad, hi + pad


INTERVAL_WIDTH = 320.0


def _at(value: float, domain: tuple[float, float]) -> float:
    lo, hi = domain
    return 6 + (min(max(value, lo), hi) - lo) / (hi - lo) * (INTERVAL_WIDTH - 12)


def interval_axis(domain: tuple[float, float], title: str = "Difference, points") -> Markup:
    """The scale above a column of intervals."""
    marks = [
        _tag("text", signed(t, 0) if float(t).is_integer() else signed(t), x=_at(t, domain), y=26.0, class_="tick mid")
        for t in ticks(*domain, about=5)
    ]
    name = _tag("text", title, x=INTERVAL_WIDTH / 2, y=11.0, class_="tick mid title")
    return _svg(INTERVAL_WIDTH, 30, f"{title}: scale from {signed(domain[0])} to {signed(domain[1])}", [name, *marks], "axis")


def interval_cell(
    domain: tuple[float, float],
    value: float | None,
    low: float | None,
    high: float | None,
    kind: str,
    *,
    margins: Sequence[float] = (),
    paper: float | None = None,
    label: str = "",
) -> Markup:
    """One row of a forest plot: the interval, its estimate, zero, the margins as dashes, the paper's value as a diamond.

    `kind` is better, worse, flat or one of the verdicts; it is also told by the row's words.
    """
    h = 26.0
    out = [_tag("line", x1=_at(t, domain), x2=_at(t, domain), y1=0.0, y2=h, class_="grid") for t in ticks(*domain, about=5)]
    out.append(_tag("line", x1=_at(0, domain), x2=_at(0, domain), y1=0.0, y2=h, class_="zero"))
    out += [
        _tag("line", x1=_at(m, domain), x2=_at(m, domain), y1=2.0, y2=h - 2, class_="margin")
        for m in margins
        if domain[0] <= m <= domain[1]
    ]
    if low is not None and high is not None:
        # An end that is not bounded runs to the edge and has no cap.
        out.append(_tag("line", x1=_at(low, domain), x2=_at(high, domain), y1=h / 2, y2=h / 2, class_=f"ci {kind}"))
        ends = [_at(v, domain) for v in (low, high) if math.isfinite(v)]
        out += [_tag("line", x1=x, x2=x, y1=h / 2 - 4, y2=h / 2 + 4, class_=f"ci {kind}") for x in ends]
    if paper is not None:
        out.append(_diamond(_at(paper, domain), h / 2, "diamond"))
    if value is not None:
        s = 4.5
        x = _at(value, domain)
        out.append(_tag("rect", x=x - s, y=h / 2 - s, width=2 * s, height=2 * s, rx=1.5, class_=f"est {kind}"))
    said = label or (f"{signed(value)} points ({signed(low)} to {signed(high)})" if value is not None else "no estimate")
    return _svg(INTERVAL_WIDTH, h, said, out, "forest")


def discordance_cell(better: int, worse: int, most: int) -> Markup:
    """Questions that got worse to the left, better to the right of one middle line."""
    w, h = 320.0, 26.0
    mid, unit = w / 2, (w / 2 - 42) / max(most, 1)
    out = [
        _tag("rect", x=mid - worse * unit, y=5.0, width=worse * unit, height=16.0, class_="bar worse"),
        _tag("rect", x=mid, y=5.0, width=better * unit, height=16.0, class_="bar better"),
        _tag("line", x1=mid, x2=mid, y1=1.0, y2=25.0, class_="zero"),
        _tag("text", f"{worse:,}", x=mid - worse * unit - 5, y=17.0, class_="tick end strong"),
        _tag("text", f"{better:,}", x=mid + better * unit + 5, y=17.0, class_="tick strong"),
    ]
    return _svg(w, h, f"{better} got better, {worse} got worse", out, "forest")


def bar_cell(value: float, most: float, label: str, cls: str = "plain") -> Markup:
    """One horizontal bar."""
    w, h = 320.0, 20.0
    return _svg(
        w,
        h,
        label,
        [
            _tag(
                "rect",
                x=0.0,
                y=4.0,
                width=max(1.0, value / most * w) if most > 0 and value > 0 else 0.0,
                height=12.0,
                rx=2.0,
                class_=f"bar {cls}",
            )
        ],
        "forest",
    )


def line_chart(title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup:
    """Curves over the training step, one an iteration, named at their ends."""
    w, h, left, right, top, bottom = 312.0, 186.0, 54.0, 22.0, 10.0, 38.0
    shown = [(name, thin(pts)) for name, pts in series if pts]
    xs, ys = [p[0] for _, pts in shown for p in pts], [p[1] for _, pts in shown for p in pts]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = 0.06 * (y1 - y0) or max(abs(y1) * 0.05, 1e-9)
    y0, y1, x1 = y0 - pad, y1 + pad, x1 if x1 > x0 else x0 + 1

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return left + (point[0] - x0) / (x1 - x0) * (w - left - right), top + (y1 - point[1]) / (y1 - y0) * (h - top - bottom)

    out = _axis_titles(w, h, (left, right, top, bottom), "Training step", title)
    for t in ticks(y0, y1):
        y = at((x0, t))[1]
        out += [
            _tag("line", x1=left, x2=w - right, y1=y, y2=y, class_="grid"),
            _tag("text", short(t), x=left - 6, y=y + 3.5, class_="tick end"),
        ]
    out += [_tag("text", short(t), x=at((t, y0))[0], y=h - 21, class_="tick mid") for t in ticks(x0, x1)]
    for i, (_, pts) in enumerate(shown):
        cls = f"curve c{min(i, 5)}"
        pos = [at(p) for p in pts]
        out.append(
            _tag("polyline", points=" ".join(f"{_n(x)},{_n(y)}" for x, y in pos), class_=cls)
            if len(pos) > 1
            else _tag("circle", cx=pos[0][0], cy=pos[0][1], r=3.0, class_=cls)
        )
    names = sorted((at(pts[-1])[1], i, name) for i, (name, pts) in enumerate(shown))
    for y, i, name in zip(
        _apart([y for y, _, _ in names], 11.0, h - bottom), (i for _, i, _ in names), (name for _, _, name in names), strict=True
    ):
        out.append(_tag("text", name, x=w - right + 5, y=y + 3.5, class_=f"tick strong t{min(i, 5)}"))
    return _svg(w, h, f"{title} by training step; last: " + ", ".join(f"iteration {name} {pts[-1][1]:.4g}" for name, pts in shown), out)


def _apart(ys: Sequence[float], gap: float, bottom: float) -> list[float]:
    """Sorted label positions moved to be at least `gap` apart, the lowest no lower than `bottom`."""
    out: list[float] = []
    for y in ys:
        out.append(max(y, out[-1] + gap) if out else y)
    limit = bottom
    for i in reversed(range(len(out))):
        out[i] = min(out[i], limit)
        limit = out[i] - gap
    return out


def thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most about `most` points of a curve: means of equal stretches, the last point kept."""
    if len(points) <= most:
        return list(points)
    k = math.ceil(len(points) / most)
    groups = [points[i : i + k] for i in range(0, len(points), k)]
    return [*((sum(p[0] for p in g) / len(g), sum(p[1] for p in g) / len(g)) for g in groups), points[-1]]


def hero_chart(labels: Sequence[str], points: Sequence[Interval]) -> Markup:
    """The mean over the benchmarks, large: a calm line with its band of intervals."""
    w, h, left, right, top, bottom = 470.0, 216.0, 50.0, 62.0, 10.0, 44.0
    lo, hi = min(p.low for p in points), max(p.high for p in points)
    pad = max(0.12 * (hi - lo), 0.5)
    lo, hi = max(0.0, lo - pad), min(100.0, hi + pad)
    n = len(points)

    def x(index: int) -> float:
        return left + 14 + (index * (w - left - right - 28) / (n - 1) if n > 1 else (w - left - right) / 2)

    def y(value: float) -> float:
        return top + (hi - value) / (hi - lo) * (h - top - bottom)

    out = _axis_titles(w, h, (left, right, top, bottom), "Iteration", "Mean score, %")
    for t in ticks(lo, hi):
        out += [
            _tag("line", x1=left, x2=w - right, y1=y(t), y2=y(t), class_="grid"),
            _tag("text", short(t), x=left - 8, y=y(t) + 4, class_="tick end"),
        ]
    if n > 1:
        edge = [*((x(i), y(p.high)) for i, p in enumerate(points)), *((x(i), y(p.low)) for i, p in reversed(list(enumerate(points))))]
        out.append(_tag("polygon", points=" ".join(f"{_n(a)},{_n(b)}" for a, b in edge), class_="ribbon"))
        out.append(_tag("polyline", points=" ".join(f"{_n(x(i))},{_n(y(p.value))}" for i, p in enumerate(points)), class_="trace big"))
    for i, p in enumerate(points):
        kind = "first" if i == 0 else "later"
        if n == 1:
            out.append(_tag("line", x1=x(i), x2=x(i), y1=y(p.low), y2=y(p.high), class_=f"whisker {kind}"))
        out.append(_tag("circle", cx=x(i), cy=y(p.value), r=5.5, class_=f"dot {kind}"))
        out.append(_tag("text", labels[i], x=x(i), y=h - 24, class_="tick mid"))
    out.append(_tag("text", f"{points[-1].value:.1f}", x=x(n - 1) + 13, y=y(points[-1].value) + 5, class_="value big"))
    if n > 1:
        out.append(_tag("text", f"{points[0].value:.1f}", x=x(0), y=y(points[0].high) - 7, class_="tick mid strong"))
    return _svg(
        w, h, "mean over benchmarks: " + ", ".join(f"{s} {p.value:.1f}" for s, p in zip(labels, points, strict=True)), out, "chart hero"
    )
