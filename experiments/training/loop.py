"""Trains one method from wherever it stands to the end.

In a run of several processes all of them go through here together; everything that
touches the run's directory happens in the primary one and is told to the others.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from rich.console import Console

from experiments import config as config_lib
from experiments.distributed import any_process, on_primary, on_primary_only
from experiments.errors import DivergedError, InterruptedRun, StorageError, one_line
from experiments.method_options import ONE_SHOT
from experiments.methods import Arm
from experiments.training import metrics as metrics_lib
from experiments.training import one_shot
from experiments.training import state as state_lib
from experiments.training import steps as steps_lib
from experiments.training.checkpoints import Checkpoints
from experiments.training.feeds import Feed
from experiments.training.measure import Measure, Shared
from experiments.training.network_file import NETWORK, NetworkFile
from experiments.training.progress import Progress
from experiments.training.result import make_result
from experiments.training.signals import StopRequest

RESULT = "result.json"

# Steps of a stream between two looks at the signals.
_STREAM_CALL = 50

_DIVERGED = (
    "earlier checkpoints are kept, and nothing from there on. Lower learning_rate or "
    "add warmup_epochs, and train into another workdir."
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One method to train.

    Attributes:
      config: its resolved config.
      plan: its durations in steps.
      arm: the method.
      model: the network.
      feed: the data.
      shared: compiled functions that all methods use.
      directory: its own directory; created if missing.
    """

    config: config_lib.Config
    plan: config_lib.Plan
    arm: Arm
    model: nn.Module
    feed: Feed
    shared: Shared
    directory: Path


def train_arm(task: Task, stop: StopRequest, console: Console) -> dict[str, Any]:
    """Trains one method, or continues it, and records its result.

    Args:
      task: what to train.
      stop: whether to stop; a method that has come to its end by then is recorded.
      console: where to show progress.

    Returns:
      What `result.json` holds; read from it if the method is finished.

    Raises:
      DivergedError: if the loss is not finite.
      InterruptedRun: after a termination signal, with the state saved.
      StorageError: if something cannot be written, or a checkpoint cannot be read.
      UsageError: if there are checkpoints and none of them is whole.
    """
    config, plan, arm, directory = task.config, task.plan, task.arm, task.directory
    finished = on_primary(lambda: _read_result(directory))
    if finished is not None:
        console.print(f"{arm.name}: finished before, in {directory}")
        return finished
    if arm.name in ONE_SHOT:
        arm = arm.with_masks(one_shot.draw_masks(config, task.model, task.feed))
        task = dataclasses.replace(task, arm=arm)
    sample = jnp.zeros((1, *task.feed.info.image_shape), jnp.float32)
    start = state_lib.compile_init(task.model, arm, sample, config.seed)
    with contextlib.ExitStack() as files:
        saved = on_primary_only(lambda: _open_checkpoints(task, files))
        # Precedence: the newest whole checkpoint, then an older one, then the start.
        state, problems = on_primary(lambda: saved.restore(start))
        for problem in problems:
            console.print(f"[bold yellow]warning:[/] {problem}", soft_wrap=True)
        is_restored = state is not None
        state = start if state is None else state
        if is_restored:
            step = int(state.step)
            epoch = plan.epoch_of(step)
            console.print(f"{arm.name}: continuing after epoch {epoch} (step {step})")
        # Metrics after the checkpoint are dropped: they are about to be written anew.
        step = int(state.step)
        with _storage_errors(task):
            writer = on_primary_only(
                lambda: files.enter_context(metrics_lib.MetricsWriter(directory, step))
            )
        network = NetworkFile(
            directory / NETWORK, config, task.feed.info, task.model, arm
        )
        if is_restored:
            # A kill may have come between a checkpoint and its network, and after the
            # last checkpoint no other network is to come.
            with _storage_errors(task):
                on_primary(network.write, state)
        outputs = Outputs(saved, network, writer, stop, console)
        state = _train(task, state, outputs)
    return on_primary(lambda: _write_result(task, state))


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Where training leaves what it produces.

    Attributes:
      checkpoints: of this method; of use in the primary process only.
      network: beside the newest of them, for others to use.
      writer: of its metrics; likewise.
      stop: whether a signal asked to stop.
      console: where to show progress.
    """

    checkpoints: Any
    network: NetworkFile
    writer: Any
    stop: StopRequest
    console: Console

    def write(self, values: dict[str, Any], timing: dict[str, float]) -> None:
        """Writes an epoch's line; in the primary process only, like the next two."""
        self.writer.write(values, timing)

    def write_steps(self, line: dict[str, Any]) -> None:
        """Writes a line of the step log."""
        self.writer.write_steps(line)

    def save(self, step: int, state: state_lib.TrainState) -> None:
        """Saves a checkpoint, and the network in it."""
        self.checkpoints.save(step, state)
        self.network.write(state)


def _train(
    task: Task, state: state_lib.TrainState, outputs: Outputs
) -> state_lib.TrainState:
    config, plan, arm = task.config, task.plan, task.arm
    step = int(state.step)
    recipe = steps_lib.Recipe(
        model=task.model,
        arm=arm,
        info=task.feed.info,
        accumulation_steps=config.accumulation_steps,
        label_smoothing=config.label_smoothing,
        crop_padding=config.data.crop_padding,
        flip=config.data.flip,
        log_every_steps=config.log_every_steps or plan.steps_per_epoch,
    )
    advance = None
    measure = Measure(config, plan, arm, task.feed, task.shared)
    replicated = state_lib.replicate(state)
    clock = _Clock(time.perf_counter(), step)
    with Progress(outputs.console, arm.name, plan, step) as progress:
        while step < plan.total_steps:
            frozen_blocks = arm.around.frozen_blocks(plan.epoch_of(step))
            if advance is None or frozen_blocks != recipe.frozen_blocks:
                # What is not differentiated is no part of the compiled step.
                recipe = dataclasses.replace(recipe, frozen_blocks=frozen_blocks)
                advance = task.feed.train(recipe, plan, step)
            goal = next_stop(config, plan, step)
            replicated = advance(replicated, goal - step)
            trained = state_lib.unreplicate(replicated.progress)
            step = goal
            _require_finite(trained, arm.name, plan)
            is_last = step == plan.total_steps
            stopping = any_process(outputs.stop.requested) and not is_last
            if config.log_every_steps and step % config.log_every_steps == 0:
                line = measure.steps(step, trained.window)
                with _storage_errors(task):
                    on_primary(outputs.write_steps, line)
                progress.steps(line)
            epochs = plan.epoch_of(step)
            if step == plan.start_of(epochs):
                state = state_lib.unreplicate(replicated)
                values = measure.epoch(state, replicated, trained.epoch)
                timing = clock.lap(step, config.batch_size)
                with _storage_errors(task):
                    on_primary(outputs.write, values, timing)
                progress.epoch(values, clock.left(plan.total_steps))
                if arm.around.is_due(epochs) and not is_last:
                    _require_finite_state(state, arm.name)
                    state = arm.around.after_epoch(state, epochs)
                    replicated = state_lib.replicate(state)
            # Only after its metrics, so that a checkpoint implies them.
            if stopping or _is_checkpoint_due(config, plan, step):
                state = state_lib.unreplicate(replicated)
                _require_finite_state(state, arm.name)
                with _storage_errors(task):
                    on_primary(outputs.save, step, state)
            if stopping:
                raise InterruptedRun(
                    f"{arm.name}: stopped by SIGTERM at step {step} of "
                    f"{plan.total_steps} (epoch {plan.epochs_at(step):.2f} of "
                    f"{plan.epochs}), state saved; the same command continues."
                )
    return state_lib.unreplicate(replicated)


def next_stop(config: config_lib.Config, plan: config_lib.Plan, step: int) -> int:
    """The next step after which training returns to the host.

    Args:
      config: a validated config.
      plan: its durations in steps.
      step: steps so far, less than all.

    Returns:
      The step at which an epoch ends, something is to be written, or the longest
      allowed call is over, whichever comes first.
    """
    longest = config.steps_per_call or (
        _STREAM_CALL if config_lib.is_streamed(config.data) else plan.steps_per_epoch
    )
    intervals = (config.log_every_steps, config.checkpoint_every_steps)
    stops = [(step // every + 1) * every for every in intervals if every]
    return min(step + longest, plan.start_of(plan.epoch_of(step) + 1), *stops)


def _is_checkpoint_due(
    config: config_lib.Config, plan: config_lib.Plan, step: int
) -> bool:
    epochs, besides = plan.epoch_of(step), config.checkpoint_every_steps
    is_epoch = step == plan.start_of(epochs)
    return (
        step == plan.total_steps
        or (is_epoch and epochs % config.checkpoint_every_epochs == 0)
        or (besides is not None and step % besides == 0)
    )


class _Clock:
    """Time per epoch, and an estimate of what is left."""

    def __init__(self, now: float, step: int):
        self._began, self._step = now, step
        self._laps: list[float] = []  # Seconds per step.

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        """Ends a lap at a step: what `timing.jsonl` holds of it."""
        now = time.perf_counter()
        seconds, steps = now - self._began, step - self._step
        self._laps.append(seconds / steps)
        self._began, self._step = now, step
        return {
            "seconds": seconds,
            "examples_per_second": steps * batch_size / seconds,
        }

    def left(self, total_steps: int) -> float | None:
        """Seconds until the end; None while it is anybody's guess."""
        # The first lap of a process is mostly compilation.
        if not self._laps[1:]:
            return None
        return float(np.mean(self._laps[1:])) * (total_steps - self._step)


def _require_finite(progress: Any, name: str, plan: config_lib.Plan) -> None:
    step = int(progress.bad_step)
    if not step:
        return
    epoch = plan.epoch_of(step - 1) + 1
    raise DivergedError(
        f"{name}: the loss became infinite or NaN at step {step} (epoch {epoch}); "
        f"{_DIVERGED}"
    )


def _require_finite_state(state: state_lib.TrainState, name: str) -> None:
    """A loss is that of the parameters before the step; these are those after it."""
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise DivergedError(
            f"{name}: a parameter became infinite or NaN before step "
            f"{int(state.step)} was over; {_DIVERGED}"
        )


@contextlib.contextmanager
def _storage_errors(task: Task) -> Iterator[None]:
    """Turns whatever writing raises into one sentence."""
    try:
        yield
    # TensorStore and Orbax raise errors of several kinds for a full disk.
    except Exception as error:
        raise StorageError(
            f"{task.arm.name}: cannot write in {task.directory} "
            f"({one_line(error)[:200]}); the checkpoints there are kept. Make room, or "
            "make it writable, and give the same command to continue."
        ) from error


def _open_checkpoints(task: Task, files: contextlib.ExitStack) -> Checkpoints:
    with _storage_errors(task):
        task.directory.mkdir(parents=True, exist_ok=True)
        text = config_lib.to_json(task.config)
        metrics_lib.write_atomically(task.directory / "config.json", text)
        keep = task.config.checkpoints_to_keep
        return files.enter_context(Checkpoints(task.directory / "checkpoints", keep))


def _read_result(directory: Path) -> dict[str, Any] | None:
    path = directory / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_result(task: Task, state: state_lib.TrainState) -> dict[str, Any]:
    result = make_result(task.arm, state, task.directory, task.config.batch_size)
    with _storage_errors(task):
        text = json.dumps(result, indent=2) + "\n"
        metrics_lib.write_atomically(task.directory / RESULT, text)
    return result
