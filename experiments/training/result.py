"""What a finished method is remembered by: its `result.json`."""

from pathlib import Path
from typing import Any

import neurrev_jax
from experiments.methods import Arm
from experiments.procedures import freezing
from experiments.training import metrics as metrics_lib
from experiments.training.state import TrainState


def make_result(
    arm: Arm, state: TrainState, directory: Path, batch_size: int
) -> dict[str, Any]:
    """Puts the result of a method together.

    Args:
      arm: the method.
      state: the final state.
      directory: the method's directory, with its metrics.
      batch_size: examples of a batch over all devices.

    Returns:
      The result; accuracy is that of the final state, the best is beside it.
    """
    lines = metrics_lib.read_lines(directory / metrics_lib.METRICS)
    timing = metrics_lib.read_lines(directory / metrics_lib.TIMING)
    last = lines[-1]
    # Where training starts again, what is left in the end was trained last.
    final = [line for line in lines if line.get("round") == last.get("round")]
    best = max(final, key=lambda line: line["test_accuracy"])
    summary = arm.summarize(state.params, state.opt_state)
    return {
        "method": arm.name,
        "test_accuracy": last["test_accuracy"],
        "best_test_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
        "sparsity": summary.total.sparsity,
        "active_weights": summary.total.active,
        "weights": summary.total.size,
        "dormant_rate": last["dormant_rate"],
        "dormant_rate_inner": last["dormant_rate_inner"],
        "topology_updates": last["topology_updates"],
        **arm.around.report(state.memory, last["epoch"]),
        "epochs": last["epoch"],
        "steps": last["step"],
        "examples_seen": last["step"] * batch_size,
        "seconds": sum(line["seconds"] for line in timing),
        "layers": [
            {
                "path": layer.path,
                "shape": list(layer.shape),
                "size": layer.size,
                "active": layer.active,
                "sparsity": layer.sparsity,
            }
            for layer in in_order(summary)
        ],
    }


def in_order(summary: neurrev_jax.Summary) -> list[neurrev_jax.LayerSummary]:
    """Layers roughly from input to output; the tree has them by name.

    Args:
      summary: of a network of `neurrev_jax.models`.

    Returns:
      Its layers.
    """
    return sorted(summary, key=lambda layer: freezing.depth(layer.path))
