"""Tables of finished runs, on the console and as files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.training.metrics import write_atomically


def save(results: list[dict[str, Any]], directory: Path) -> None:
    """Writes `results.json` (everything) and `results.csv` (a row per method).

    Args:
      results: what each method's `result.json` holds.
      directory: where to write.
    """
    write_atomically(directory / "results.json", json.dumps(results, indent=2) + "\n")
    # Some methods have values of their own.
    names = dict.fromkeys(name for result in results for name in result)
    columns = [name for name in names if name != "layers"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    write_atomically(directory / "results.csv", text.getvalue())


def show(results: list[dict[str, Any]], console: Console) -> None:
    """Prints the comparison, and the layers of the first sparse method.

    Args:
      results: what each method's `result.json` holds.
      console: where to print.
    """
    console.print(comparison(results))
    sparse = [result for result in results if result["method"] != "dense"]
    if sparse:
        console.print(layers(sparse[0]))


def comparison(results: list[dict[str, Any]]) -> Table:
    """A row per method.

    Args:
      results: what each method's `result.json` holds.

    Returns:
      The table.
    """
    table = Table(title="Methods", title_justify="left")
    table.add_column("method")
    for column in (
        "test accuracy\nfinal, %",
        "test accuracy\nbest, % (epoch)",
        "sparsity\n%",
        "dormant neurons\nall, %",
        "dormant neurons\ninner ReLUs, %",
        "topology\nupdates",
        "time\ns",
    ):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result["method"],
            f"{100 * result['test_accuracy']:.2f}",
            f"{100 * result['best_test_accuracy']:.2f} ({result['best_epoch']})",
            f"{100 * result['sparsity']:.2f}",
            f"{100 * result['dormant_rate']:.2f}",
            f"{100 * result['dormant_rate_inner']:.2f}",
            str(result["topology_updates"]),
            f"{result['seconds']:.1f}",
        )
    return table


def layers(result: dict[str, Any]) -> Table:
    """A row per kernel of one method.

    Args:
      result: what the method's `result.json` holds.

    Returns:
      The table.
    """
    table = Table(title=f"Layers of {result['method']}", title_justify="left")
    table.add_column("kernel")
    table.add_column("shape")
    for column in ("size", "active", "sparsity, %"):
        table.add_column(column, justify="right")
    for layer in result["layers"]:
        table.add_row(
            layer["path"],
            "x".join(map(str, layer["shape"])),
            f"{layer['size']:,}",
            f"{layer['active']:,}",
            f"{100 * layer['sparsity']:.2f}",
        )
    table.add_section()
    table.add_row(
        "total",
        "",
        f"{result['weights']:,}",
        f"{result['active_weights']:,}",
        f"{100 * result['sparsity']:.2f}",
    )
    return table
