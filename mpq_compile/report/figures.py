"""Small pictures in SVG, drawn with the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpq_compile.report.verdicts import Estimate

_SVG = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    tag = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return tag.format(name, x1, y1, x2, y2)


def _rect(name: str, x: float, y: float, width: float, height: float) -> Markup:
    tag = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"/>')
    return tag.format(name, x, y, max(width, 1.0), height)


def _joined(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def used_budget(promised: float, found: Estimate, label: str, word: str) -> Markup:
    """Draw how much of a bound is used: a bar, the interval's upper end, the bound as a line."""
    width, height = 160.0, 22.0
    most = max(1.1, (found.upper or found.value) / promised if promised else 1.1)
    scale = (width - 6) / most

    def at(value: float) -> float:
        return 2 + scale * (value / promised if promised else 0.0)

    parts = [
        _rect("track", 2, 7, scale * most, 8),
        _rect(f"fill {word.replace(' ', '-')}", 2, 7, at(found.value) - 2, 8),
    ]
    if found.upper is not None:
        low = found.value if found.lower is None else found.lower
        parts.append(_line("halo", at(low), 11, at(found.upper), 11))
        parts.append(_line("whisker", at(low), 11, at(found.upper), 11))
        parts.append(_line("whisker", at(found.upper), 8, at(found.upper), 14))
    parts.append(_line("limit", at(promised), 2, at(promised), 20))
    return _SVG.format("used", f"{width:g}", f"{height:g}", label, _joined(parts))


@dataclass(frozen=True, kw_only=True)
class Offset:
    """A measured value against a predicted one, as shares of the predicted one."""

    predicted: tuple[float, float]
    measured: tuple[float, float, float]

    @property
    def reach(self) -> float:
        """Largest distance from the prediction."""
        return max(abs(v) for v in (*self.predicted, *self.measured))


def offset_of(predicted: Estimate, measured: Estimate) -> Offset:
    """Return how far a measurement and both intervals are from the prediction."""

    def away(value: float | None, otherwise: float) -> float:
        return ((otherwise if value is None else value) - predicted.value) / predicted.value

    middle = predicted.value
    return Offset(
        predicted=(away(predicted.lower, middle), away(predicted.upper, middle)),
        measured=(
            away(measured.value, middle),
            away(measured.lower, measured.value),
            away(measured.upper, measured.value),
        ),
    )


def offset_figure(offset: Offset, reach: float, label: str) -> Markup:
    """Draw a measured value around its prediction, on an axis that reaches ``reach`` each way."""
    width, height = 200.0, 22.0

    def at(share: float) -> float:
        return width / 2 + share / (reach or 1.0) * (width / 2 - 8)

    value, low, high = offset.measured
    start, end = offset.predicted
    dot = Markup('<circle class="dot" cx="{:.1f}" cy="11" r="4"/>').format(at(value))
    parts = [
        _line("axis", 4, 11, width - 4, 11),
        _rect("band", at(start), 5, at(end) - at(start), 12),
        _line("limit", at(0), 2, at(0), 20),
        _line("whisker", at(low), 11, at(high), 11),
        dot,
    ]
    return _SVG.format("offset", f"{width:g}", f"{height:g}", label, _joined(parts))


def _bar(x: float, base: float, height: float, width: float) -> str:
    return f"M{x:.1f} {base:.0f}v{-height:.1f}h{width:.1f}V{base:.0f}z"


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One value of each site, in the order of the network, as shares of the largest."""

    title: str
    shares: Sequence[float]
    most: str


_WIDTH, _HEIGHT = 960.0, 64.0


def skyline(strips: Sequence[Strip], tints: Sequence[str], label: str) -> Markup:
    """Draw strips above each other, a bar a site; they stretch to whatever width there is."""
    rows = _joined([_strip(strip, tints) for strip in strips])
    tag = Markup('<div class="skyline" role="img" tabindex="0" aria-label="{}">{}</div>')
    return tag.format(label, rows)


def _strip(strip: Strip, tints: Sequence[str]) -> Markup:
    step = _WIDTH / max(len(tints), 1)
    thick = step * (0.86 if step > 4 else 1.0)
    paths = []
    for tint in dict.fromkeys(tints):  # bars of one colour are one path
        path = "".join(
            _bar(i * step, _HEIGHT, max(share * _HEIGHT, 0.8), thick)
            for i, (share, own) in enumerate(zip(strip.shares, tints, strict=True))
            if own == tint
        )
        paths.append(Markup('<path class="{}" d="{}"/>').format(tint, path))
    tag = Markup(
        '<div class="ends"><span>{}</span><span>{}</span></div>'
        '<svg viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" aria-hidden="true">{}'
        '<rect class="cursor" width="{:.2f}" height="{:g}" visibility="hidden"/></svg>'
    )
    ends = strip.title, strip.most
    return tag.format(*ends, _WIDTH, _HEIGHT, _joined(paths), max(step, 2.0), _HEIGHT)
