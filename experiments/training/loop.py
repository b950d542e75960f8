"""Trains one method from wherever it stands to the end."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from rich.console import Console

import neurrev_jax
from experiments import config as config_lib
from experiments.errors import DivergedError, InterruptedRun
from experiments.methods import Arm, learning_rate
from experiments.training import data as data_lib
from experiments.training import metrics as metrics_lib
from experiments.training import state as state_lib
from experiments.training import steps as steps_lib
from experiments.training.checkpoints import Checkpoints
from experiments.training.progress import Progress
from experiments.training.signals import StopRequest

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the methods of an experiment have in common.

    Attributes:
      dataset: training and test set, on the host.
      model: the network.
      train: the training set, replicated on the devices.
      test: the test set, divided over the devices.
      observed: the examples dormant neurons are measured on, divided likewise.
      evaluate: see `steps.make_evaluate`.
      observe: see `steps.make_observe`.
    """

    dataset: data_lib.Dataset
    model: nn.Module
    train: Any
    test: data_lib.Batches
    observed: data_lib.Batches
    evaluate: Callable[[Any, data_lib.Batches], steps_lib.EvalSums]
    observe: Callable[[Any, data_lib.Batches], neurrev_jax.ActivationStats]


def share(
    config: config_lib.Config, dataset: data_lib.Dataset, model: nn.Module
) -> Shared:
    """Puts the data onto the devices.

    Args:
      config: a validated config.
      dataset: training and test set.
      model: the network.

    Returns:
      What every method's training uses.
    """
    devices = jax.local_device_count()
    head = data_lib.Split(*(x[: config.dormant.examples] for x in dataset.train))
    size = config.eval_batch_size
    return Shared(
        dataset=dataset,
        model=model,
        train=state_lib.replicate(dataset.train),
        test=state_lib.distribute(data_lib.batches(dataset.test, size, devices)),
        observed=state_lib.distribute(data_lib.batches(head, size, devices)),
        evaluate=steps_lib.make_evaluate(model),
        observe=steps_lib.make_observe(model),
    )


def train_arm(
    config: config_lib.Config,
    plan: config_lib.Plan,
    arm: Arm,
    shared: Shared,
    directory: Path,
    console: Console,
) -> dict[str, Any]:
    """Trains one method, or continues it, and records its result.

    Args:
      config: the resolved config of this method.
      plan: its durations in steps.
      arm: the method.
      shared: data and compiled functions.
      directory: the method's own directory; created if missing.
      console: where to show progress.

    Returns:
      What `result.json` holds; read from it if the method is finished.

    Raises:
      DivergedError: if the loss is not finite.
      InterruptedRun: after a termination signal, with the state saved.
      UsageError: if there are checkpoints and none of them is whole.
    """
    if (directory / RESULT).exists():
        console.print(f"{arm.name}: finished before, in {directory}")
        return json.loads((directory / RESULT).read_text(encoding="utf-8"))
    directory.mkdir(parents=True, exist_ok=True)
    metrics_lib.write_atomically(directory / "config.json", config_lib.to_json(config))

    sample = shared.dataset.train.images[:1]
    start = state_lib.compile_init(shared.model, arm, sample, config.seed)
    with (
        StopRequest() as stop,
        Checkpoints(directory / "checkpoints", config.checkpoints_to_keep) as saved,
    ):
        # Precedence: the newest whole checkpoint, then an older one, then the start.
        # Metrics after it are dropped, because they are about to be written again.
        restored, problems = saved.restore(start)
        for problem in problems:
            console.print(f"[bold yellow]warning:[/] {problem}", soft_wrap=True)
        state = start if restored is None else restored
        step = int(state.step)
        if restored is not None or problems:
            console.print(
                f"{arm.name}: continuing after epoch "
                f"{step // plan.steps_per_epoch} (step {step})"
            )
        with metrics_lib.MetricsWriter(directory, step) as writer:
            state = _train_epochs(
                config, plan, arm, shared, state, (saved, writer, stop, console)
            )
    result = _result(arm, state, directory)
    text = json.dumps(result, indent=2) + "\n"
    metrics_lib.write_atomically(directory / RESULT, text)
    return result


def _train_epochs(
    config: config_lib.Config,
    plan: config_lib.Plan,
    arm: Arm,
    shared: Shared,
    state: state_lib.TrainState,
    outputs: tuple[Checkpoints, metrics_lib.MetricsWriter, StopRequest, Console],
) -> state_lib.TrainState:
    saved, writer, stop, console = outputs
    train_epoch = steps_lib.make_train_epoch(
        shared.model,
        arm,
        steps=plan.steps_per_epoch,
        batch_size=config.batch_size,
        shift_pixels=config.data.shift_pixels,
    )
    measure = _make_measure(config, plan, arm, shared)
    replicated = state_lib.replicate(state)
    done = int(state.step) // plan.steps_per_epoch
    seconds = []
    with Progress(console, arm.name, config.epochs, done) as progress:
        for epoch in range(done + 1, config.epochs + 1):
            began = time.perf_counter()
            replicated, trained = train_epoch(replicated, shared.train, epoch - 1)
            trained = state_lib.unreplicate(trained)
            state = state_lib.unreplicate(replicated)
            _require_finite(trained.loss, arm.name, epoch, plan.steps_per_epoch)
            values = measure(epoch, state, replicated, trained)
            seconds.append(time.perf_counter() - began)
            writer.write(
                values,
                {
                    "seconds": seconds[-1],
                    "examples_per_second": plan.steps_per_epoch
                    * config.batch_size
                    / seconds[-1],
                },
            )
            is_last = epoch == config.epochs
            # Only after its metrics, so that a checkpoint implies them.
            if is_last or stop.requested or epoch % config.checkpoint_every_epochs == 0:
                saved.save(int(state.step), state)
            # The first epoch of a process is mostly compilation: no basis for a guess.
            typical = float(np.mean(seconds[1:])) if seconds[1:] else None
            left = None if typical is None else typical * (config.epochs - epoch)
            progress.update(values, left)
            if stop.requested and not is_last:
                raise InterruptedRun(
                    f"{arm.name}: stopped by SIGTERM after epoch {epoch} of "
                    f"{config.epochs}, state saved; the same command continues."
                )
    return state


def _make_measure(
    config: config_lib.Config,
    plan: config_lib.Plan,
    arm: Arm,
    shared: Shared,
) -> Callable[..., dict[str, Any]]:
    """What is measured after an epoch: one line of `metrics.jsonl`."""
    forward_variables = steps_lib.make_forward_variables(arm)
    updates = arm.topology_updates(plan.total_steps)
    rate_of_step = learning_rate(config, plan)
    trained_examples = plan.steps_per_epoch * config.batch_size

    def rates(stats: neurrev_jax.ActivationStats, where: Any = None) -> Any:
        return neurrev_jax.dormant_rate(
            stats, config.dormant.criterion, config.dormant.threshold, where=where
        )

    def measure(
        epoch: int, state: state_lib.TrainState, replicated: Any, trained: Any
    ) -> dict[str, Any]:
        variables = forward_variables(replicated)
        sums = state_lib.unreplicate(shared.evaluate(variables, shared.test))
        step = int(state.step)
        summary = arm.summarize(state.params, state.opt_state)
        values = {
            "epoch": epoch,
            "step": step,
            "learning_rate": np.asarray(rate_of_step(step - 1)).item(),
            "train_loss": float(np.mean(trained.loss)),
            "train_accuracy": int(trained.correct.sum()) / trained_examples,
            "test_loss": float(sums.loss) / int(sums.count),
            "test_accuracy": int(sums.correct) / int(sums.count),
            "sparsity": summary.total.sparsity,
            "topology_updates": int(updates[step]),
        }
        if epoch % config.dormant.every_epochs == 0 or epoch == config.epochs:
            stats = state_lib.unreplicate(shared.observe(variables, shared.observed))
            every = rates(stats)
            # Channels after an addition can be kept alive by the shortcut alone.
            inner = rates(stats, lambda path: path.endswith("relu_1"))
            values["dormant_rate"] = float(every.overall)
            values["dormant_rate_inner"] = float(inner.overall)
            values["dormant_rate_by_layer"] = {
                path: float(rate) for path, rate in every.layers.items()
            }
        return values

    return measure


def _require_finite(
    losses: np.ndarray, name: str, epoch: int, steps_per_epoch: int
) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = (epoch - 1) * steps_per_epoch + int(bad[0]) + 1
        raise DivergedError(
            f"{name}: the loss became {losses[bad[0]]} at step {step} (epoch {epoch}); "
            "checkpoints of earlier epochs are kept, and nothing of this one. Lower "
            "learning_rate or add warmup_epochs, and train into another workdir."
        )


def _result(arm: Arm, state: state_lib.TrainState, directory: Path) -> dict[str, Any]:
    lines = metrics_lib.read_lines(directory / metrics_lib.METRICS)
    timing = metrics_lib.read_lines(directory / metrics_lib.TIMING)
    last = lines[-1]
    best = max(lines, key=lambda line: line["test_accuracy"])
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
        "epochs": last["epoch"],
        "steps": last["step"],
        "seconds": sum(line["seconds"] for line in timing),
        "layers": [
            {
                "path": layer.path,
                "shape": list(layer.shape),
                "size": layer.size,
                "active": layer.active,
                "sparsity": layer.sparsity,
            }
            for layer in sorted(summary, key=_depth)
        ],
    }


def _depth(layer: neurrev_jax.LayerSummary) -> tuple[int, str]:
    """Sorts layers roughly from input to output; the tree has them by name."""
    first = layer.path.split("/")[0]
    return {"stem": 0, "classifier": 2}.get(first, 1), layer.path
