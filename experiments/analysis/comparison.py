"""What a sweep found: methods by sparsity, as a table and a figure."""

import csv
import dataclasses
import io
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.analysis import figures
from experiments.training.metrics import write_atomically

TABLE, VALUES, FIGURE = "sweep.md", "sweep.csv", "sweep.png"

# Points below the best within which results are on one scale.
_SPAN = 20.0
# One per sparsity: Okabe and Ito's colors, told apart with any color vision.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


@dataclasses.dataclass(frozen=True)
class Result:
    """What one training of a sweep ended with.

    Attributes:
      method: its name in the config.
      variant: `field=value` in the method's section, or nothing.
      sparsity: the target.
      seed: of the training.
      values: what its `result.json` holds.
    """

    method: str
    variant: str
    sparsity: float
    seed: int
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A method at one sparsity, over the seeds; fractions where not said otherwise.

    Attributes:
      method: its name, with the variant in parentheses.
      target: the sparsity that was asked for.
      seeds: number of trainings.
      accuracy: mean test accuracy of the final states.
      accuracy_std: its standard deviation from seed to seed (of a sample: divided by
        their number less 1); None for a single seed.
      best_accuracy: mean of the best test accuracy of any epoch.
      sparsity: mean of what was realized over all kernels.
      dormant_rate: mean fraction of dormant neurons.
      topology_updates: mean number.
      examples_seen: mean number, all rounds of training included.
      seconds: mean time of training, without starting and reporting.
    """

    method: str
    target: float
    seeds: int
    accuracy: float
    accuracy_std: float | None
    best_accuracy: float
    sparsity: float
    dormant_rate: float
    topology_updates: float
    examples_seen: float
    seconds: float


def over_seeds(results: Sequence[Result]) -> list[Row]:
    """Means and standard deviations over the seeds.

    Args:
      results: of any number of methods, variants, sparsities and seeds.

    Returns:
      A row for every method, variant and sparsity, in the order of the results.

    >>> values = dict.fromkeys(("best_test_accuracy", "sparsity", "dormant_rate",
    ...     "topology_updates", "examples_seen", "seconds"), 0.5)
    >>> rows = over_seeds([Result("set", "", 0.9, seed, {"test_accuracy": a, **values})
    ...     for seed, a in enumerate([0.5, 1.0])])
    >>> rows[0].seeds, rows[0].accuracy, round(rows[0].accuracy_std, 4)
    (2, 0.75, 0.3536)
    """
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for result in results:
        group = groups.setdefault((result.method, result.variant, result.sparsity), [])
        group.append(result.values)
    rows = []
    for (method, variant, target), of_seeds in groups.items():
        accuracies = [values["test_accuracy"] for values in of_seeds]
        rows.append(
            Row(
                method=name(method, variant),
                target=target,
                seeds=len(of_seeds),
                accuracy=statistics.mean(accuracies),
                accuracy_std=(
                    statistics.stdev(accuracies) if len(of_seeds) > 1 else None
                ),
                best_accuracy=_mean(of_seeds, "best_test_accuracy"),
                sparsity=_mean(of_seeds, "sparsity"),
                dormant_rate=_mean(of_seeds, "dormant_rate"),
                topology_updates=_mean(of_seeds, "topology_updates"),
                examples_seen=_mean(of_seeds, "examples_seen"),
                seconds=_mean(of_seeds, "seconds"),
            )
        )
    return rows


def name(method: str, variant: str) -> str:
    """What tables call a method in one of its forms.

    >>> name("itop", "growth=random")
    'ITOP (growth=random)'
    """
    return figures.label(method) + (f" ({variant})" if variant else "")


# The one method that stands at every sparsity.
_DENSE = name("dense", "")


def _mean(of_seeds: Sequence[dict[str, Any]], field: str) -> float:
    return statistics.fmean(values[field] for values in of_seeds)


def save_all(results: Sequence[Result], directory: Path) -> str:
    """Writes the table, its values and the figure.

    Args:
      results: at least one.
      directory: where to write.

    Returns:
      The table, in Markdown.
    """
    rows = over_seeds(results)
    text = to_markdown(rows)
    write_atomically(directory / TABLE, text)
    write_atomically(directory / VALUES, to_csv(rows))
    draw(rows).savefig(directory / FIGURE)
    return text


def to_csv(rows: Sequence[Row]) -> str:
    """A line per row, with every field.

    Args:
      rows: from `over_seeds`.

    Returns:
      CSV with a header; an unknown standard deviation is left empty.
    """
    text = io.StringIO(newline="")
    fields = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """A table with a line per method and a group of columns per sparsity.

    Args:
      rows: from `over_seeds`.

    Returns:
      The table; a method that was not trained at a sparsity has a dash there, and one
      that was trained with fewer seeds than others says so.
    """
    targets = _targets(rows)
    most = max(row.seeds for row in rows)
    header = ["method"]
    for target in targets:
        at = f"{100 * target:g} %"
        header += [f"{at}: test accuracy", "sparsity", "dormant neurons", "seconds"]
    lines = [header, ["---"] * len(header)]
    for method in dict.fromkeys(row.method for row in rows):
        cells = [method]
        for target in targets:
            row = _at(rows, target).get(method)
            cells += _cells(row, most) if row else ["–"] * 4
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: Row, most: int) -> list[str]:
    spread = "" if row.accuracy_std is None else f" ± {100 * row.accuracy_std:.2f}"
    of = "" if row.seeds == most else f" ({row.seeds} of {most} seeds)"
    return [
        f"{100 * row.accuracy:.2f}{spread} %{of}",
        f"{100 * row.sparsity:.2f} %",
        f"{100 * row.dormant_rate:.1f} %",
        f"{row.seconds:.1f}",
    ]


def _targets(rows: Sequence[Row]) -> list[float]:
    """The sparsities to compare at: of the methods that have one."""
    return sorted({row.target for row in rows if row.method != _DENSE}) or [0.0]


def _at(rows: Sequence[Row], target: float) -> dict[str, Row]:
    """The row of every method at a sparsity; of the dense network, at any."""
    return {
        row.method: row for row in rows if row.target == target or row.method == _DENSE
    }


def draw(rows: Sequence[Row]) -> Figure:
    """Mean test accuracy with error bars: a panel per sparsity, a line per method.

    Args:
      rows: from `over_seeds`.

    Returns:
      The figure; error bars are one standard deviation to either side. A method that
      is far below all others is named by its value at the left edge.
    """
    targets, methods = _targets(rows), list(dict.fromkeys(row.method for row in rows))
    figure = Figure(
        figsize=(2.4 + 2.6 * len(targets), 1.2 + 0.21 * len(methods)),
        dpi=150,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    best = 100 * max(row.accuracy for row in rows)
    near = [row for row in rows if 100 * row.accuracy > best - _SPAN]
    low = min(100 * (row.accuracy - (row.accuracy_std or 0)) for row in near)
    left = low - 0.05 * (best - low) - 0.1
    for axes, target, color in zip(grid, targets, itertools.cycle(_COLORS)):
        everything = _at(rows, target)
        shown = {name: row for name, row in everything.items() if row in near}
        for method in everything.keys() - shown.keys():
            value = 100 * everything[method].accuracy
            at = (left, methods.index(method))
            axes.annotate(f"← {value:.1f}", at, fontsize=7, color=color, va="center")
        axes.errorbar(
            [100 * row.accuracy for row in shown.values()],
            [methods.index(method) for method in shown],
            xerr=[100 * (row.accuracy_std or 0) for row in shown.values()],
            fmt="o",
            color=color,
            markersize=4,
            capsize=2,
            linewidth=1,
        )
        axes.set_xlim(left=left)
        axes.set_title(f"{100 * target:g} % sparsity", fontsize=10)
        axes.set_xlabel("Test accuracy (%)", fontsize=9)
        axes.tick_params(labelsize=8)
        figures.frame(axes)
    grid[0].set_yticks(range(len(methods)), methods)
    grid[0].set_ylim(len(methods) - 0.5, -0.5)  # the first on top
    return figure
