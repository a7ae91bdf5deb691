"""Plots as SVG text. matplotlib's object interface only: no global state, no display, no backend to choose."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnfold.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Distinguishable for the colour-blind (Okabe & Ito), in the order in which candidates are drawn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_GRAY, _LINE = "#666666", "#e5e5e5"
#: What is no data follows the colours of the page, which may be dark.
_OF_PAGE = {"#000000": "currentColor", _GRAY: "var(--soft)", _LINE: "var(--line)"}


def _figure(width: float, height: float) -> Figure:
    figure: Figure = require("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")
    return figure


def _axes(figure: Figure, *position: int) -> Axes:
    axes = figure.add_subplot(*position)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    return axes


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    # Text stays text, so that it can be read aloud, searched and copied.
    matplotlib = require("matplotlib", "plot")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bnfold", "font.family": "sans-serif"}):
        figure.savefig(
            stream,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace("<svg ", '<svg class="plot" ', 1)
    for colour, of_page in _OF_PAGE.items():
        text = text.replace(colour, of_page)
    return text


def training_curve(history: Sequence[Mapping[str, Any]]) -> str:
    """Loss of both splits, and accuracy on the test split, by epoch."""
    return _svg(_training_figure(history, _figure(8.4, 2.9)))


def training_curve_png(history: Sequence[Mapping[str, Any]]) -> bytes:
    """The same as a picture that stands alone."""
    figure = _figure(9.6, 3.4)
    _training_figure(history, figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def _training_figure(history: Sequence[Mapping[str, Any]], figure: Figure) -> Figure:
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) <= 40 else None  # a single epoch has no line
    loss = _axes(figure, 1, 2, 1)
    for key, label, colour in (("train_loss", "training objective", COLOURS[0]), ("test_loss", "test", COLOURS[1])):
        loss.plot(epochs, [row[key] for row in history], color=colour, marker=marker, markersize=3, label=label)
    loss.set(xlabel="epoch", ylabel="cross-entropy")
    loss.legend(frameon=False, fontsize=9)
    accuracy = _axes(figure, 1, 2, 2)
    accuracy.plot(
        epochs, [100 * row["test_accuracy"] for row in history], color=COLOURS[1], marker=marker, markersize=3
    )
    accuracy.set(xlabel="epoch", ylabel="test accuracy (%)")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(require("matplotlib.ticker", "plot").MaxNLocator(integer=True))
    accuracy.margins(y=0.15)
    before, last = (100 * history[index]["test_accuracy"] for index in (max(-2, -len(history)), -1))
    beside = (-6, 6) if last >= before else (-6, -16)  # where the line does not come from
    accuracy.annotate(f"{last:.2f} %", (epochs[-1], last), textcoords="offset points", xytext=beside, ha="right")
    return figure


def op_counts(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Nodes of each op type before and after, as paired bars; the ops that changed come first."""
    names = sorted({*before, *after}, key=lambda op: (before.get(op, 0) == after.get(op, 0), -before.get(op, 0)))
    figure = _figure(8.4, 0.9 + 0.36 * len(names))
    axes = _axes(figure, 1, 1, 1)
    axes.grid(visible=False)
    rows = np.arange(len(names))
    for offset, counts, colour, label in ((-0.19, before, COLOURS[0], "before"), (0.19, after, COLOURS[1], "after")):
        widths = [counts.get(name, 0) for name in names]
        bars = axes.barh(rows + offset, widths, height=0.36, color=colour, label=label)
        axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(require("matplotlib.ticker", "plot").MaxNLocator(integer=True))
    axes.set(xlabel="nodes")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _svg(figure)


def errors(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Relative errors on a logarithmic scale.

    Args:
        rows: what was run, its largest error relative to the output's scale, and the bound that it was held to;
            None where there is none.
    """
    shown = [(name, error, bound) for name, error, bound in rows if error is not None]
    floor = 1e-12
    figure = _figure(8.4, 0.9 + 0.42 * len(shown))
    axes = _axes(figure, 1, 1, 1)
    axes.grid(visible=False)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    for row, (_, error, bound) in enumerate(shown):
        axes.plot([floor, max(error, floor)], [row, row], color=_LINE, linewidth=1.2, zorder=1)
        axes.plot(max(error, floor), row, "o", color=COLOURS[0], zorder=2, label="error" if row == 0 else None)
        axes.annotate(f"{error:.1e}", (max(error, floor), row), textcoords="offset points", xytext=(0, 7),
                      ha="center", fontsize=8)  # fmt: skip
        if bound is not None:
            axes.plot(bound, row, "|", color=COLOURS[1], markersize=16, markeredgewidth=2, zorder=2)
    if any(bound is not None for _, _, bound in shown):
        axes.plot([], [], "|", color=COLOURS[1], markersize=12, markeredgewidth=2, label="allowed")
    axes.set_xscale("log")
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.invert_yaxis()
    axes.set_ylim(len(shown) - 0.4, -0.7)
    axes.set(xlabel="largest error, relative to the output's scale")
    axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    return _svg(figure)


def _in_its_unit(
    samples: Mapping[str, NDArray[np.float64]],
) -> tuple[dict[str, NDArray[np.float64]], str]:
    """Milliseconds in the unit in which the slowest median has digits before the point, and that unit."""
    slowest = max(float(np.median(values)) for values in samples.values())
    factor, unit = (1e3, "µs") if slowest < 1 else (1.0, "ms") if slowest < 1e3 else (1e-3, "s")
    return {label: factor * values for label, values in samples.items()}, unit


def latency_distributions(samples: Mapping[str, NDArray[np.float64]]) -> str:
    """Latency of each candidate as a histogram over a common axis, its median marked.

    Args:
        samples: latencies in milliseconds by candidate.
    """
    samples, unit = _in_its_unit(samples)
    low = min(float(np.percentile(values, 0.5)) for values in samples.values())
    # Up to twice the slowest median's distance from the fastest run: a long tail would squeeze the rest.
    medians = [float(np.median(values)) for values in samples.values()]
    high = min(
        max(float(np.percentile(values, 99)) for values in samples.values()), max(medians) + 2 * (max(medians) - low)
    )
    edges = np.linspace(low * 0.99, max(high, max(medians) * 1.05), 60)
    figure = _figure(8.4, 2.9)
    axes = _axes(figure, 1, 1, 1)
    for colour, (label, values) in zip(COLOURS, samples.items(), strict=False):
        inside = np.clip(values, edges[0], edges[-1])
        axes.hist(
            inside,
            edges.tolist(),
            weights=np.full(len(inside), 100 / len(inside)),
            color=colour,
            alpha=0.55,
            label=label,
        )
        axes.axvline(float(np.median(values)), color=colour, linewidth=1.6)
    axes.set(
        xlabel=f"latency of one run ({unit}); lines are medians, the last bin holds all slower runs", ylabel="% of runs"
    )
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def latency_ranges(samples: Mapping[str, NDArray[np.float64]]) -> str:
    """Latency of many candidates, one below the other: the middle half, the middle eight tenths, and the median.

    Args:
        samples: latencies in milliseconds by candidate.
    """
    samples, unit = _in_its_unit(samples)
    figure = _figure(8.4, 0.9 + 0.36 * len(samples))
    axes = _axes(figure, 1, 1, 1)
    axes.grid(visible=False)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    for row, values in enumerate(samples.values()):
        low, first, median, third, high = np.percentile(values, (10, 25, 50, 75, 90))
        axes.plot([low, high], [row, row], color=COLOURS[0], linewidth=1.4)
        axes.plot([first, third], [row, row], color=COLOURS[0], linewidth=6, alpha=0.55, solid_capstyle="butt")
        axes.plot(median, row, "|", color=COLOURS[1], markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(samples)), list(samples))
    axes.set_ylim(len(samples) - 0.4, -0.6)
    axes.set(xlabel=f"latency of one run ({unit}): median, middle half, middle 80 %")
    return _svg(figure)


def op_times(rows: Sequence[tuple[str, float, float]]) -> str:
    """The time of each op type before and after, as paired bars.

    Args:
        rows: op type, microseconds before, microseconds after.
    """
    figure = _figure(8.4, 0.9 + 0.36 * len(rows))
    axes = _axes(figure, 1, 1, 1)
    axes.grid(visible=False)
    positions = np.arange(len(rows))
    for offset, index, colour, label in ((-0.19, 1, COLOURS[0], "before"), (0.19, 2, COLOURS[1], "after")):
        bars = axes.barh(positions + offset, [row[index] for row in rows], height=0.36, color=colour, label=label)
        axes.bar_label(bars, labels=[f"{row[index]:.3g}" for row in rows], padding=3, fontsize=8)
    axes.set_yticks(positions, [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="microseconds in each run")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _svg(figure)


def ratio_intervals(rows: Sequence[tuple[str, float, float, float]], baseline: str = "the original") -> str:
    """Speed-ups with their intervals, around the line of no difference.

    Args:
        rows: label, low end, estimate and high end of each speed-up.
        baseline: over what.
    """
    figure = _figure(8.4, 0.9 + 0.45 * len(rows))
    axes = _axes(figure, 1, 1, 1)
    axes.grid(visible=False)
    axes.axvline(1.0, color=_GRAY, linewidth=1, linestyle="--")
    for index, (_, low, estimate, high) in enumerate(rows):
        axes.plot([low, high], [index, index], color=COLOURS[0], linewidth=2)
        axes.plot(estimate, index, "o", color=COLOURS[0])
        text = f"{estimate:.2f}×" if estimate < 10 else f"{estimate:.3g}×"
        axes.annotate(text, (estimate, index), textcoords="offset points", xytext=(0, 7), ha="center",
                      fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.8)
    axes.set(xlabel=f"speed-up over {baseline} (1 is no difference), 95 % interval")
    return _svg(figure)
