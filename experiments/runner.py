"""An experiment from its config to its report."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn
from rich.console import Console

from experiments import config as config_lib
from experiments import methods, networks, workdir
from experiments.analysis import figures, report
from experiments.data.base import DataInfo, InMemory
from experiments.data.load import load
from experiments.distributed import any_process, on_primary, on_primary_only
from experiments.errors import InterruptedRun, StorageError, UsageError, one_line
from experiments.training import feeds, loop, measure, network_file, state
from experiments.training.signals import StopRequest


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config that has been checked against data, devices and library.

    Attributes:
      config: the validated config.
      plan: durations in steps, of the first method.
      data: the data set, in memory or as a stream.
      model: the network.
      arms: the methods to train, each with its own resolved config.
    """

    config: config_lib.Config
    plan: config_lib.Plan
    data: Any
    model: nn.Module
    arms: tuple[tuple[config_lib.Config, methods.Arm], ...]


def prepare(config: config_lib.Config) -> Experiment:
    """Builds everything that can be wrong, without writing anything.

    Args:
      config: a config that `rules.validate` accepted.

    Returns:
      The experiment.

    Raises:
      UsageError: for values that data, devices or the library do not accept.
    """
    _check_devices(config)
    data = load(config.data, jax.process_index(), jax.process_count())
    info = data.info
    if config.dormant.examples > info.train_examples:
        raise UsageError(
            f"dormant.examples={config.dormant.examples} must not exceed the "
            f"{info.train_examples} training examples; lower it."
        )
    try:
        model = networks.make_network(config.model, info.num_classes, state.AXIS)
        jax.eval_shape(model.init, jax.random.key(0), _sample(info))
    # Networks complain in their own ways about shapes that do not fit them.
    except (ValueError, TypeError) as error:
        raise UsageError(f"model.name={config.model.name!r}: {one_line(error)}") from (
            error
        )
    arms = tuple(
        _prepare_arm(config, model, info, name) for name in config_lib.arm_names(config)
    )
    return Experiment(config, arms[0][1].plan, data, model, arms)


def _check_devices(config: config_lib.Config) -> None:
    devices = jax.device_count()
    if devices != jax.process_count() * jax.local_device_count():
        raise UsageError(
            f"this process has {jax.local_device_count()} of {devices} devices, but "
            f"all {jax.process_count()} processes need as many as one another; start "
            "them alike."
        )
    parts = devices * config.accumulation_steps
    if config.batch_size % parts:
        times = "" if config.accumulation_steps == 1 else " times accumulation_steps"
        raise UsageError(
            f"batch_size={config.batch_size} must be a multiple of the {devices} "
            f"devices{times}; try {max(1, config.batch_size // parts) * parts}."
        )


def _prepare_arm(
    config: config_lib.Config,
    model: nn.Module,
    info: DataInfo,
    name: str,
) -> tuple[config_lib.Config, methods.Arm]:
    arm_config: config_lib.Config = ml_collections.ConfigDict(config.to_dict())
    arm_config.method.name = name
    arm_config.compare = ()
    arm_config.lock()
    plan = config_lib.plan(arm_config, info.train_examples)
    try:
        shapes = jax.eval_shape(model.init, jax.random.key(0), _sample(info))
        arm = methods.make_arm(arm_config, plan, shapes["params"])
        # Traces without computing: the library checks its arguments in `init`.
        jax.eval_shape(
            functools.partial(state.init_state, model, arm, seed=config.seed),
            _sample(info),
        )
    except ValueError as error:
        raise UsageError(f"method {name}: {one_line(error)}") from error
    return arm_config, arm


def _sample(info: DataInfo) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *info.image_shape), np.float32)


def run(experiment: Experiment, directory: Path, console: Console) -> None:
    """Trains every method that is not finished, and reports.

    Args:
      experiment: from `prepare`.
      directory: the run's directory, which `workdir.check` accepted.
      console: where to show progress and tables.

    Raises:
      UsageError: if the directory cannot be used.
      DivergedError: if a loss is not finite.
      InterruptedRun: after a termination signal, within a method or between two.
      StorageError: if something cannot be written, or a checkpoint cannot be read.
    """
    config, model = experiment.config, experiment.model
    with StopRequest() as stop, contextlib.ExitStack() as held:
        # Claimed by the primary process for all of them.
        on_primary_only(lambda: held.enter_context(workdir.claim(directory, config)))
        console.print(headline(experiment), soft_wrap=True)
        if isinstance(experiment.data, InMemory):
            feed: feeds.Feed = feeds.MemoryFeed(config, experiment.data)
        else:
            feed = feeds.StreamFeed(config, experiment.data)
        _keep_examples(feed, directory)
        shared = measure.share(model, feed.info)
        results: list[dict[str, Any]] = []
        for arm_config, arm in experiment.arms:
            # The one before may have come to its end after the signal.
            if any_process(stop.requested):
                raise InterruptedRun(
                    f"stopped by SIGTERM before {arm.name}, with {len(results)} of "
                    f"{len(experiment.arms)} methods finished; the same command "
                    "continues."
                )
            task = loop.Task(
                config=arm_config,
                plan=arm.plan,
                arm=arm,
                model=model,
                feed=feed,
                shared=shared,
                directory=directory / arm.name,
            )
            results.append(loop.train_arm(task, stop, console))
        on_primary(lambda: _report(experiment, results, directory, console))


def _keep_examples(feed: feeds.Feed, directory: Path) -> None:
    """Some examples beside the networks, for exporting them."""
    path = directory / network_file.EXAMPLES
    if on_primary(path.exists):
        return
    examples = network_file.read_examples(feed)
    try:
        on_primary(network_file.write_examples, path, examples)
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({one_line(error)}); make room and give the same "
            "command."
        ) from error


def _report(
    experiment: Experiment,
    results: list[dict[str, Any]],
    directory: Path,
    console: Console,
) -> None:
    try:
        report.save(results, directory)
        saved = figures.save_all(results, directory, _until_epoch(experiment))
    except OSError as error:
        raise StorageError(
            f"cannot write the report in {directory} ({one_line(error)}); all results "
            "are kept. Make room and give the same command for the report."
        ) from error
    report.show(results, console)
    names = ", ".join(str(path) for path in saved)
    console.print(f"figures: {names}", soft_wrap=True)


def headline(experiment: Experiment) -> str:
    """What a run says of itself before it starts."""
    config, info = experiment.config, experiment.data.info
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0), _sample(info))
    parameters = sum(
        int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])
    )
    devices, processes = jax.device_count(), jax.process_count()
    of = f" of {processes} processes" if processes > 1 else ""
    return (
        f"{info.name}: {info.train_examples:,} training and {info.test_examples:,} "
        f"test examples; network of {parameters:,} parameters; "
        f"{experiment.plan.epochs} epochs of {experiment.plan.steps_per_epoch} steps "
        f"of {config.batch_size} examples on {devices} {jax.default_backend()} "
        f"device{'s' if devices > 1 else ''}{of}"
    )


def _until_epoch(experiment: Experiment) -> float | None:
    """The epoch of the last topology update within a training, of any method."""
    last = 0.0
    for _, arm in experiment.arms:
        updates = arm.topology_updates(arm.plan.total_steps)
        if updates[-1] and not arm.plan.rounds:
            step = int(np.argmax(updates == updates[-1]))
            last = max(last, arm.plan.epochs_at(step))
    return last or None
