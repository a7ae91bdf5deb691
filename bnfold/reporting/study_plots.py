"""The charts of a study, drawn beside each other: as SVG for its page, and as PNG for everything else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnfold.reporting.plots import _GRAY, COLOURS, _axes, _figure, _svg
from bnfold.studies.result import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 130
#: Inches of a figure by the number of charts in it.
_WIDTHS = {1: 8.4, 2: 9.8}
_MARKERS = ("o", "s", "^", "D", "v")


def svg(charts: Sequence[Chart]) -> str:
    """The charts as one SVG text, in the colours of the page."""
    return _svg(_drawn(charts))


def png(charts: Sequence[Chart]) -> bytes:
    """The charts as one PNG image on white."""
    stream = io.BytesIO()
    _drawn(charts).savefig(stream, format="png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": "bnfold"})
    return stream.getvalue()


def _drawn(charts: Sequence[Chart]) -> Figure:
    figure = _figure(_WIDTHS.get(len(charts), 12.8), 3.5)
    for index, chart in enumerate(charts):
        _draw(_axes(figure, 1, len(charts), index + 1), chart)
    return figure


def _draw(axes: Axes, chart: Chart) -> None:
    few = max(len(series.x) for series in chart.series) <= 20
    for series, colour, marker in zip(chart.series, COLOURS, _MARKERS, strict=False):
        axes.plot(series.x, series.y, color=colour, label=series.label, linewidth=1.6,
                  marker=marker if few else None, markersize=3.5)  # fmt: skip
        if series.low:
            low = _floor(series.low, series.y) if chart.y_log else np.asarray(series.low)
            axes.fill_between(series.x, low, series.high, color=colour, alpha=0.18, linewidth=0)
    if chart.x_log:
        axes.set_xscale("log", base=2 if _powers_of_two(chart) else 10)
    if chart.y_log:
        axes.set_yscale("log")
    if chart.reference is not None:
        value, label = chart.reference
        axes.axhline(value, color=_GRAY, linewidth=1, linestyle="--")
        axes.annotate(label, (1, value), xycoords=("axes fraction", "data"), textcoords="offset points",
                      xytext=(-2, -3), ha="right", va="top", fontsize=8, color=_GRAY)  # fmt: skip
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axes.set_title(chart.title, fontsize=10, loc="left")
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _floor(low: Sequence[float], y: Sequence[float]) -> NDArray[np.float64]:
    """Lower ends that a logarithmic axis can show: where one is 0 or less, a hundredth of the middle."""
    ends: NDArray[np.float64] = np.maximum(np.asarray(low, dtype=np.float64), np.asarray(y) / 100)
    return ends


def _powers_of_two(chart: Chart) -> bool:
    exponents = np.log2(np.concatenate([np.asarray(series.x, dtype=np.float64) for series in chart.series]))
    return bool(np.allclose(exponents, np.round(exponents)))
