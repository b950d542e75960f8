"""Figures of finished runs, as PNG files."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.training import metrics as metrics_lib

# Okabe and Ito's colors can be told apart with any color vision; line styles help
# in print.
_DASHED, _DOTTED, _DASH_DOT = "--", ":", "-."
_MIXED = (0, (5, 1, 1, 1, 1, 1))
_LOOSE = (0, (7, 3))
_STYLES = {
    "neurrev": ("#D55E00", "-"),
    "dense": ("#000000", _DASHED),
    "set": ("#0072B2", _DASH_DOT),
    "rigl": ("#009E73", _DOTTED),
    "static": ("#CC79A7", _MIXED),
    "lth": ("#E69F00", "-"),
    "spfde": ("#56B4E9", "-"),
    "itop": ("#009E73", "-"),
    "mest": ("#0072B2", "-"),
    "snfs": ("#CC79A7", "-"),
    "deep_r": ("#E69F00", _DASHED),
    "dsr": ("#56B4E9", _DASHED),
    "top_kast": ("#009E73", _DASHED),
    "powerprop": ("#CC79A7", _DASHED),
    "ac_dc": ("#0072B2", _DASHED),
    "granet": ("#E69F00", _DASH_DOT),
    "gradual_magnitude": ("#56B4E9", _DASH_DOT),
    "chase": ("#CC79A7", _DASH_DOT),
    "magnitude": ("#009E73", _MIXED),
    "snip": ("#E69F00", _MIXED),
    "grasp": ("#56B4E9", _MIXED),
    "synflow": ("#0072B2", _MIXED),
    "fish": ("#CC79A7", _LOOSE),
}
_LABELS = {
    "neurrev": "NeurRev",
    "set": "SET",
    "rigl": "RigL",
    "lth": "LTH (last round)",
    "spfde": "SpFDE",
    "itop": "ITOP",
    "mest": "MEST",
    "snfs": "SNFS",
    "deep_r": "Deep-R",
    "dsr": "DSR",
    "top_kast": "Top-KAST",
    "powerprop": "Powerprop",
    "ac_dc": "AC/DC",
    "granet": "GraNet",
    "gradual_magnitude": "gradual",
    "chase": "Chase",
    "snip": "SNIP",
    "grasp": "GraSP",
    "synflow": "SynFlow",
    "fish": "FISH",
}
_SIZE = (6.4, 4.0)
# What procedures around training say of themselves, epoch by epoch.
_TRAINED = {"frozen_blocks": "Frozen blocks", "active_examples": "Active examples"}


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
    compared = {name: last_round(rows) for name, rows in lines.items()}
    saved = [
        _save(accuracy(compared, until), directory / "accuracy.png"),
        _save(dormant_neurons(compared, until), directory / "dormant_neurons.png"),
    ]
    for name, rows in lines.items():
        if "round" in rows[-1]:
            saved.append(_save(rounds(name, rows), directory / f"{name}_rounds.png"))
        if _TRAINED.keys() & rows[-1].keys():
            saved.append(_save(trained(name, rows), directory / f"{name}_trained.png"))
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


def last_round(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of what was trained last, with the epoch within it.

    Args:
      rows: a method's lines of `metrics.jsonl`.

    Returns:
      All of them, unless the method trains in rounds.
    """
    if "round" not in rows[-1]:
        return rows
    last = [row for row in rows if row["round"] == rows[-1]["round"]]
    return [{**row, "epoch": row["epoch_in_round"]} for row in last]


def rounds(name: str, rows: list[dict[str, Any]]) -> Figure:
    """Test accuracy at the end of every round, by the sparsity it was trained at.

    Args:
      name: the method.
      rows: its lines of `metrics.jsonl`.

    Returns:
      The figure.
    """
    figure, axes = _axes("Sparsity (%)", "Test accuracy (%)")
    # The last line of a round replaces those before it.
    ends = {row["round"]: row for row in rows}
    _plot(axes, name, list(ends.values()), "test_accuracy", "sparsity", marker="o")
    for number, row in ends.items():
        at = 100 * row["sparsity"], 100 * row["test_accuracy"]
        axes.annotate(
            str(number), at, (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.margins(y=0.15)
    axes.set_title(f"{name.upper()}: at the end of each round", fontsize=10)
    return figure


def trained(name: str, rows: list[dict[str, Any]]) -> Figure:
    """How much of the network and of the data takes part, over time.

    Args:
      name: the method.
      rows: its lines of `metrics.jsonl`.

    Returns:
      The figure, with an axis for each of the two that the method varies.
    """
    shown = [field for field in _TRAINED if field in rows[-1]]
    figure = Figure(figsize=(6.4, 2.2 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), sharex=True, squeeze=False)
    for axes, field in zip(grid[:, 0], shown, strict=True):
        axes.step(
            [row["epoch"] for row in rows],
            [row[field] for row in rows],
            where="pre",
            color=_STYLES[name][0],
            linewidth=1.8,
        )
        axes.set_ylabel(_TRAINED[field])
        axes.set_ylim(bottom=0)
        frame(axes)
    grid[-1, 0].set_xlabel("Training time (epochs)")
    grid[0, 0].set_title(label(name), fontsize=10)
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
        f"{label(name)}: {overall:.1f} % of all weights are active", fontsize=10
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
    frame(axes)
    return figure, axes


def frame(axes: Axes) -> None:
    """Gives axes the look of all figures here: a light grid, two lines around."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plot(
    axes: Axes,
    name: str,
    rows: list[dict[str, Any]],
    field: str,
    against: str = "epoch",
    **options: Any,
) -> None:
    color, style = _STYLES[name]
    axes.plot(
        [row[against] * (1 if against == "epoch" else 100) for row in rows],
        [100 * row[field] for row in rows],
        color=color,
        linestyle=style,
        linewidth=1.8,
        label=label(name),
        **options,
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
        ncols=min(len(axes.lines), 5),
        frameon=False,
        fontsize=9,
        columnspacing=1.4,
        handlelength=2.6,
    )


def label(name: str) -> str:
    """A method's name as its paper writes it.

    >>> label("ac_dc")
    'AC/DC'
    """
    return _LABELS.get(name, name)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
