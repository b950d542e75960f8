"""Figures of finished runs, as PNG files."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.training import metrics as metrics_lib

# Okabe and Ito's colors can be told apart with any color vision; line styles help
# in print.
_STYLES = {
    "neurrev": ("#D55E00", "-"),
    "dense": ("#000000", "--"),
    "set": ("#0072B2", "-."),
    "rigl": ("#009E73", ":"),
    "static": ("#CC79A7", (0, (5, 1, 1, 1, 1, 1))),
}
_LABELS = {"neurrev": "NeurRev", "set": "SET", "rigl": "RigL"}
_SIZE = (6.4, 4.0)


def save_all(
    results: list[dict[str, Any]], directory: Path, until_epoch: float | None
) -> list[Path]:
    """Draws every figure.

    Args:
      results: what each method's `result.json` holds.
      directory: the run's directory, with one directory per method.
      until_epoch: epoch of the last topology update, or None.

    Returns:
      The files written.
    """
    lines = {
        result["method"]: metrics_lib.read_lines(
            directory / result["method"] / metrics_lib.METRICS
        )
        for result in results
    }
    until = until_epoch
    saved = [
        _save(accuracy(lines, until), directory / "accuracy.png"),
        _save(dormant_neurons(lines, until), directory / "dormant_neurons.png"),
    ]
    sparse = [result for result in results if result["method"] != "dense"]
    if sparse:
        saved.append(_save(layer_density(sparse[0]), directory / "layer_density.png"))
    return saved


def accuracy(lines: dict[str, list[dict[str, Any]]], until: float | None) -> Figure:
    """Test accuracy over time.

    Args:
      lines: each method's lines of `metrics.jsonl`.
      until: epoch of the last topology update, or None.

    Returns:
      The figure.
    """
    figure, axes = _axes("Training time (epochs)", "Test accuracy (%)")
    for name, rows in lines.items():
        _plot(axes, name, rows, "test_accuracy")
    # The first tenth of training would squeeze the differences into a few pixels.
    shown = [
        100 * row["test_accuracy"]
        for rows in lines.values()
        for row in rows[len(rows) // 10 :]
    ]
    low, high = 5 * (min(shown) // 5), min(100, 5 * (max(shown) // 5 + 1))
    axes.set_ylim(low, high + 0.03 * (high - low))
    _finish(axes, until)
    return figure


def dormant_neurons(
    lines: dict[str, list[dict[str, Any]]], until: float | None
) -> Figure:
    """Dormant neurons of all ReLUs over time.

    Args:
      lines: each method's lines of `metrics.jsonl`.
      until: epoch of the last topology update, or None.

    Returns:
      The figure.
    """
    figure, axes = _axes("Training time (epochs)", "Dormant neurons (% of channels)")
    for name, rows in lines.items():
        measured = [row for row in rows if "dormant_rate" in row]
        _plot(axes, name, measured, "dormant_rate")
    # Where none is dormant the axis would otherwise shrink to rounding.
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    _finish(axes, until)
    return figure


def layer_density(result: dict[str, Any]) -> Figure:
    """Active weights of each kernel of one method.

    Args:
      result: what the method's `result.json` holds.

    Returns:
      The figure.
    """
    layers = result["layers"]
    figure, axes = _axes("Density (% of weights active)", "")
    figure.set_figheight(1.2 + 0.28 * len(layers))
    name = result["method"]
    density = [100 * (1 - layer["sparsity"]) for layer in layers]
    bars = axes.barh(
        [layer["path"].removesuffix("/kernel") for layer in layers],
        density,
        color=_STYLES[name][0],
        height=0.7,
    )
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    overall = 100 * (1 - result["sparsity"])
    axes.set_title(
        f"{_label(name)}: {overall:.1f} % of all weights are active", fontsize=10
    )
    axes.set_xlim(0, min(115.0, max(density) * 1.15))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plot(axes: Axes, name: str, rows: list[dict[str, Any]], field: str) -> None:
    color, style = _STYLES[name]
    axes.plot(
        [row["epoch"] for row in rows],
        [100 * row[field] for row in rows],
        color=color,
        linestyle=style,
        linewidth=1.8,
        label=_label(name),
    )


def _finish(axes: Axes, until: float | None) -> None:
    if until is not None:
        axes.axvline(
            until, color="0.6", linewidth=1, zorder=0, label="last topology update"
        )
    axes.margins(x=0.02)
    # Above the axes, where it cannot cover a line.
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(axes.lines),
        frameon=False,
        fontsize=9,
        columnspacing=1.4,
        handlelength=2.6,
    )


def _label(name: str) -> str:
    return _LABELS.get(name, name)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
