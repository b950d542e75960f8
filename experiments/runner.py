"""An experiment from its config to its report."""

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
from experiments.errors import UsageError, one_line
from experiments.training import data, loop, state


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config that has been checked against data, devices and library.

    Attributes:
      config: the validated config.
      plan: its durations in steps.
      dataset: training and test set.
      model: the network.
      arms: the methods to train, each with its own resolved config.
    """

    config: config_lib.Config
    plan: config_lib.Plan
    dataset: data.Dataset
    model: nn.Module
    arms: tuple[tuple[config_lib.Config, methods.Arm], ...]


def prepare(config: config_lib.Config) -> Experiment:
    """Builds everything that can be wrong, without writing anything.

    Args:
      config: a config that `config.validate` accepted.

    Returns:
      The experiment.

    Raises:
      UsageError: for values that data, devices or the library do not accept.
    """
    devices = jax.device_count()
    if config.batch_size % devices:
        raise UsageError(
            f"batch_size={config.batch_size} must be a multiple of the {devices} "
            f"devices; try {max(1, config.batch_size // devices) * devices}."
        )
    dataset = data.load(config.data)
    plan = config_lib.plan(config, len(dataset.train.labels))
    if config.dormant.examples > len(dataset.train.labels):
        raise UsageError(
            f"dormant.examples={config.dormant.examples} must not exceed the "
            f"{len(dataset.train.labels)} training examples; lower it."
        )
    model = networks.make_network(config.model, dataset.num_classes, state.AXIS)
    arms = tuple(
        _prepare_arm(config, plan, model, dataset, name)
        for name in config_lib.arm_names(config)
    )
    return Experiment(config, plan, dataset, model, arms)


def _prepare_arm(
    config: config_lib.Config,
    plan: config_lib.Plan,
    model: nn.Module,
    dataset: data.Dataset,
    name: str,
) -> tuple[config_lib.Config, methods.Arm]:
    arm_config: config_lib.Config = ml_collections.ConfigDict(config.to_dict())
    arm_config.method.name = name
    arm_config.compare = ()
    arm_config.lock()
    try:
        arm = methods.make_arm(arm_config, plan)
        # Traces without computing: the library checks its arguments in `init`.
        jax.eval_shape(
            functools.partial(state.init_state, model, arm, seed=config.seed),
            dataset.train.images[:1],
        )
    except ValueError as error:
        raise UsageError(f"method {name}: {one_line(error)}") from error
    return arm_config, arm


def run(experiment: Experiment, directory: Path, console: Console) -> None:
    """Trains every method that is not finished, and reports.

    Args:
      experiment: from `prepare`.
      directory: the run's directory, which `workdir.check` accepted.
      console: where to show progress and tables.

    Raises:
      UsageError: if the directory cannot be used.
      DivergedError: if a loss is not finite.
      InterruptedRun: after a termination signal.
    """
    config, plan = experiment.config, experiment.plan
    with workdir.claim(directory, config):
        shared = loop.share(config, experiment.dataset, experiment.model)
        console.print(_headline(experiment), soft_wrap=True)
        results: list[dict[str, Any]] = [
            loop.train_arm(arm_config, plan, arm, shared, directory / arm.name, console)
            for arm_config, arm in experiment.arms
        ]
        report.save(results, directory)
        saved = figures.save_all(results, directory, _until_epoch(experiment))
        report.show(results, console)
        names = ", ".join(str(path) for path in saved)
        console.print(f"figures: {names}", soft_wrap=True)


def _headline(experiment: Experiment) -> str:
    config, train = experiment.config, experiment.dataset.train
    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0), train.images[:1])
    parameters = sum(
        int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])
    )
    devices = jax.device_count()
    return (
        f"{config.data.name}: {len(train.labels)} training and "
        f"{len(experiment.dataset.test.labels)} test examples; network of "
        f"{parameters:,} parameters; {config.epochs} epochs of "
        f"{experiment.plan.steps_per_epoch} steps on {devices} "
        f"{jax.default_backend()} device{'s' if devices > 1 else ''}"
    )


def _until_epoch(experiment: Experiment) -> float | None:
    """The epoch of the last topology update of any method."""
    plan = experiment.plan
    last = 0
    for _, arm in experiment.arms:
        updates = arm.topology_updates(plan.total_steps)
        if updates[-1]:
            last = max(last, int(np.argmax(updates == updates[-1])))
    return last / plan.steps_per_epoch if last else None
