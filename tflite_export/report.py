"""What the command line shows: tables of a model, a check, a comparison."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tflite_export import cluster as cluster_lib
from tflite_export.exported import Exported
from tflite_export.graph import Graph
from tflite_export.latency import Timing, computes_sparsely, host
from tflite_export.verification import Verification

_SHOWN_REASONS = 8


def show_model(graph: Graph, size: int, gzipped_size: int, console: Console) -> None:
    """Operators, layers and what is computed sparsely.

    Args:
      graph: of the model.
      size: bytes of the file.
      gzipped_size: bytes of the file, compressed.
      console: where to.
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in graph.histogram().items())
    console.print(f"size: {_bytes(size)}, gzipped {_bytes(gzipped_size)}")
    console.print(f"operators: {kinds}", soft_wrap=True)
    layers = cluster_lib.place(graph)
    table = Table(title="Layers with weights", title_justify="left")
    table.add_column("layer", no_wrap=True)
    for column in ("kernel", "weights", "zero, %", "M mult-adds", "on Arm"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, group in _by_name(layers).items():
        weights = sum(p.layer.weights.size for p in group)
        nonzero = sum(p.layer.weights.nonzero for p in group)
        kernel = "x".join(map(str, group[0].layer.kernel))
        table.add_row(
            name,
            kernel if len(group) == 1 else f"{len(group)} of {kernel}",
            f"{weights:,}",
            f"{100 * (1 - nonzero / weights):.2f}",
            f"{sum(p.layer.multiply_adds for p in group) / 1e6:.3f}",
            f"{sum(p.multiply_adds for p in group) / 1e6:.3f}",
        )
    console.print(table)
    show_placement(layers, console)
    _show_reasons(layers, console)


def show_placement(layers: Sequence[cluster_lib.Placement], console: Console) -> None:
    """How many layers Arm computes sparsely.

    Args:
      layers: from `cluster.place`.
      console: where to.
    """
    sparse = sum(p.is_sparse for p in layers)
    total = sum(p.layer.multiply_adds for p in layers)
    on_arm = sum(p.multiply_adds for p in layers)
    console.print(
        f"sparse inference on Arm: {sparse} of {len(layers)} layers; {on_arm:,} "
        f"multiply-adds are executed there, {total:,} by dense arithmetic",
        soft_wrap=True,
    )


def _show_reasons(layers: Sequence[cluster_lib.Placement], console: Console) -> None:
    reasons: dict[str, list[str]] = {}
    for placement in layers:
        if not placement.is_sparse:
            reasons.setdefault(placement.reason, []).append(placement.layer.name)
    for reason, names in list(reasons.items())[:_SHOWN_REASONS]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"  dense: {names[0]}{others}: {reason}", soft_wrap=True)
    if len(reasons) > _SHOWN_REASONS:
        console.print(f"  and {len(reasons) - _SHOWN_REASONS} more reasons")


def show_verification(
    found: Verification, title: str, whole_test_set: bool, console: Console
) -> None:
    """What a comparison with JAX found.

    Args:
      found: from `verify`.
      title: what was compared.
      whole_test_set: whether the examples were all of the test set.
      console: where to.
    """
    console.print(
        f"{title}: {found.samples} inputs in LiteRT and in JAX, largest difference "
        f"{found.max_difference:.3g} ({found.relative_difference:.3g} of the largest "
        "output)",
        soft_wrap=True,
    )
    if found.agreement is not None:
        console.print(f"same class as JAX: {found.agreement:.2%}")
    if found.accuracy is not None and found.reference_accuracy is not None:
        which = "the test set" if whole_test_set else "part of the test set"
        console.print(
            f"accuracy: {found.accuracy:.2%}, in JAX {found.reference_accuracy:.2%} "
            f"({which}, {found.samples} inputs)"
        )
    size = sum(leaf.size for leaf in found.weights)
    nonzero = sum(leaf.nonzero for leaf in found.weights)
    kept = sum(leaf.stored == leaf.nonzero for leaf in found.weights)
    known = [leaf for leaf in found.weights if leaf.stored is not None]
    rounded = sum(leaf.nonzero - (leaf.stored or 0) for leaf in known)
    console.print(
        f"sparsity: {1 - nonzero / max(size, 1):.2%} of {size:,} weights; kept exactly "
        f"in {kept} of {len(found.weights)} tensors"
        + (f", {rounded:,} more weights rounded or cut out" if rounded > 0 else ""),
        soft_wrap=True,
    )
    for leaf in found.weights:
        if leaf.stored is None:
            console.print(f"  {leaf.path} was not found in the file", soft_wrap=True)
    for problem in found.problems:
        console.print(f"failed: {problem}", soft_wrap=True, markup=False)


def show_sizes(sizes: Mapping[str, tuple[int, int]], console: Console) -> None:
    """Bytes of several forms of a file.

    Args:
      sizes: by form, bytes and bytes compressed.
      console: where to.
    """
    shown = "; ".join(
        f"{name} {_bytes(size)}, gzipped {_bytes(gzipped)}"
        for name, (size, gzipped) in sizes.items()
    )
    console.print(f"size: {shown}", soft_wrap=True)


def show_channels(exported: Exported, console: Console) -> None:
    """How many channels were cut out, and why others without weights were not.

    Args:
      exported: the model.
      console: where to.
    """
    if exported.dead_channels:
        console.print(
            f"channels cut out, always zero or never read: {exported.dead_channels}"
        )
    if exported.kept_channels:
        reasons = "; ".join(
            f"{count} {reason}" for reason, count in exported.kept_channels.items()
        )
        console.print(
            f"channels without weights that stay: "
            f"{sum(exported.kept_channels.values())} ({reasons})",
            soft_wrap=True,
        )


def show_timings(
    rows: Sequence[Mapping[str, Any]], runs: int, console: Console
) -> None:
    """Times of several models beside one another.

    Args:
      rows: from `timing_rows`.
      runs: timed runs of each.
      console: where to.
    """
    table = Table(
        title=f"LiteRT on {host()}, median of {runs} interleaved runs",
        title_justify="left",
    )
    headers = {
        "variant": "variant",
        "threads": "threads",
        "median_ms": "ms",
        "quartiles_ms": "quartiles",
        "size": "size",
        "gzipped": "gzipped",
        "multiply_adds": "M mult-adds",
        "multiply_adds_on_arm": "on Arm",
    }
    for key, header in headers.items():
        justify = "left" if key == "variant" else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in headers))
    console.print(table)
    if not computes_sparsely():
        console.print(
            "This processor is x86 with AVX, where XNNPACK never computes sparsely: "
            "the times above are those of dense arithmetic, whatever the sparsity. "
            "What sparse inference saves has to be measured on Arm (`android`); the "
            "last column counts the multiply-adds that are executed there.",
            soft_wrap=True,
        )


def timing_rows(
    timings: Sequence[Timing],
    graphs: Mapping[str, Graph],
    sizes: Mapping[str, tuple[int, int]],
) -> list[dict[str, Any]]:
    """One row for each timing, as tables and CSV files have it.

    Args:
      timings: from `latency.measure`.
      graphs: of the models, by name.
      sizes: bytes and bytes compressed, by name.

    Returns:
      The rows.
    """
    rows = []
    for timing in timings:
        layers = cluster_lib.place(graphs[timing.name])
        size, gzipped = sizes[timing.name]
        dense = sum(p.layer.multiply_adds for p in layers)
        on_arm = sum(p.multiply_adds for p in layers)
        rows.append(
            {
                "variant": timing.name,
                "threads": timing.threads,
                "runs": timing.runs,
                "median_ms": timing.median,
                "quartiles_ms": timing.quartiles,
                "fastest_ms": timing.fastest,
                "size": size,
                "gzipped": gzipped,
                "multiply_adds": on_arm if computes_sparsely() else dense,
                "multiply_adds_on_arm": on_arm,
            }
        )
    return rows


def show_metadata(graph: Graph, name: str, console: Console) -> None:
    """What a model says of itself.

    Args:
      graph: of the model.
      name: of the text in it.
      console: where to.
    """
    text = graph.metadata.get(name)
    if text is None:
        console.print("metadata: none of neurrev_jax")
        return
    for key, value in json.loads(text).items():
        console.print(f"{key}: {json.dumps(value)}", soft_wrap=True, markup=False)


def _by_name(
    layers: Sequence[cluster_lib.Placement],
) -> dict[str, list[cluster_lib.Placement]]:
    groups: dict[str, list[cluster_lib.Placement]] = {}
    # The network itself is the first scope of all names, and says nothing.
    roots = {placement.layer.name.partition("/")[0] for placement in layers}
    for placement in layers:
        _, _, rest = placement.layer.name.partition("/")
        name = rest if len(roots) == 1 and rest else placement.layer.name
        groups.setdefault(name, []).append(placement)
    return groups


def _cell(key: str, value: Any) -> str:
    if key == "quartiles_ms":
        return f"{value[0]:.3g}-{value[1]:.3g}"
    if key.endswith("_ms"):
        return f"{value:.3g}"
    if key.startswith("multiply_adds"):
        return f"{value / 1e6:,.2f}"
    if key in ("size", "gzipped"):
        return _bytes(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.3f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
