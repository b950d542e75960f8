"""Fields of a config, their defaults and their rules.

Durations carry their unit in the name and are converted to steps in one place,
`plan`. A config file changes the defaults; the fields themselves are fixed here, so
a misspelled one is an error and not an option without effect.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from experiments.errors import UsageError

# An `ml_collections.ConfigDict`, whose fields no type checker can know.
Config = Any

SPARSE_METHODS = ("neurrev", "set", "rigl", "static")
METHODS = (*SPARSE_METHODS, "dense")

# What may differ when a run is continued: it makes no difference to what is trained.
_NOT_OF_THE_RUN = (
    "data.dir",
    "steps_per_call",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoints_to_keep",
)


def default_config() -> Config:
    """All fields with their defaults, locked against new ones.

    Returns:
      The config that a config file starts from.
    """
    config: Config = ml_collections.ConfigDict()
    config.seed = 0

    # The first method is the one the experiment is about; the others are trained
    # beside it, each in a directory of its name.
    config.method = ml_collections.ConfigDict()
    config.method.name = "neurrev"
    config.method.update_interval_epochs = 5.0
    # Moves all topology updates: with 0 and a whole interval they fall on the end of
    # an epoch, and what is measured there is a network that has not adapted yet.
    config.method.update_start_epochs = 0.0
    config.method.until_fraction = 0.75  # of training; no topology update after it
    config.method.neurrev = ml_collections.ConfigDict(
        {
            **_own_schedule(),
            # None: from `update_ratio_at`, by the sparsity.
            "update_ratio": config_dict.placeholder(float),
            # (sparsity, ratio) pairs; straight lines between, constant outside.
            "update_ratio_at": ((0.9, 0.1),),
            "ratio_schedule": "constant",  # or "cosine": to 0 at `until`
            "prune_ratio": config_dict.placeholder(float),  # None: update_ratio
            "ratio_of": "nonzero",
            "eligible": "survivors",
            "too_few": "fewer",
            "scope": "layer",
            "first_update": "skip",
            "order_by": "change",
            "slots": "zero",
            "init_mask": "random",
        }
    )
    config.method.set = ml_collections.ConfigDict(
        {
            **_own_schedule(),
            "update_ratio": 0.3,
            "ratio_schedule": "constant",
            "drop": "signed",
            "init_mask": "random",
        }
    )
    config.method.rigl = ml_collections.ConfigDict(
        {
            **_own_schedule(),
            "update_ratio": 0.3,
            "ratio_schedule": "cosine",
            "init_mask": "random",
        }
    )
    config.method.static = ml_collections.ConfigDict({"init_mask": "random"})
    config.compare = ("dense", "set")

    config.sparsity = 0.9
    config.distribution = "erk"

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # or "cifar10", "cifar100", "imagenet2012"
    config.data.source = "sklearn"  # or "tfds", "npz", "generated"
    # Of "tfds" (None: TFDS_DATA_DIR, or ~/tensorflow_datasets) and "npz".
    config.data.dir = config_dict.placeholder(str)
    config.data.image_size = config_dict.placeholder(int)  # of imagenet2012
    config.data.test_fraction = 0.25  # of digits
    # Augmentation of data held in memory; a stream has its own.
    config.data.crop_padding = 0  # black pixels on every side before a random crop
    config.data.flip = False
    config.data.generated_train = 2048  # examples
    config.data.generated_test = 256
    # A stream is read as so many fixed shares, divided over the processes: what is
    # trained on does not depend on how many processes there are.
    config.data.stream_shares = 8
    config.data.shuffle_buffer = 1024  # undecoded examples per share

    config.model = ml_collections.ConfigDict()
    config.model.name = "resnet"  # or "imagenet_resnet", "vgg", "mobilenet"
    config.model.stage_sizes = (5, 5, 5)  # blocks or convolutions of each stage
    config.model.widths = (32, 64, 128)  # channels of each stage
    config.model.block = "basic"  # of imagenet_resnet; or "bottleneck"
    config.model.width_multiplier = 1.0  # of mobilenet
    config.model.activation = "relu"
    config.model.hardware_activation = False  # its piecewise-linear approximation
    config.model.sync_batch_norm = True  # batch statistics over all devices
    config.model.dtype = "float32"  # of the computation; or "bfloat16"

    config.epochs = 160
    # Extended training: multiplies epochs, warm-up and all that concerns topology
    # updates, which are given for 1.
    config.training_multiplier = 1.0
    config.batch_size = 64  # over all devices
    # A batch is cut into so many parts per device, whose gradients are averaged.
    config.accumulation_steps = 1
    config.learning_rate = 0.1
    config.final_learning_rate = 0.0
    config.learning_rate_changes = "every_step"  # or "every_epoch"
    config.warmup_epochs = 0.0
    config.momentum = 0.9
    config.weight_decay = 1e-4  # coupled L2
    config.weight_decay_on = "all"  # or "all_but_norm"
    config.label_smoothing = 0.0

    config.eval_batch_size = 512  # over all devices
    config.dormant = ml_collections.ConfigDict()
    config.dormant.examples = 2048  # of the training set, never augmented
    config.dormant.every_epochs = 1
    config.dormant.criterion = "zero"  # or "apoz", "score"
    config.dormant.threshold = config_dict.placeholder(float)

    # Training returns to the host after so many steps at most, to look for a signal;
    # None: after an epoch of data held in memory, after 50 steps of a stream.
    config.steps_per_call = config_dict.placeholder(int)
    config.log_every_steps = config_dict.placeholder(int)  # None: epochs only
    config.checkpoint_every_epochs = 1
    config.checkpoint_every_steps = config_dict.placeholder(int)  # besides
    config.checkpoints_to_keep = 3
    return config.lock()


def _own_schedule() -> dict[str, Any]:
    """Where a method differs from the experiment's schedule; None: it does not."""
    return {
        "update_interval_epochs": config_dict.placeholder(float),
        "update_interval_steps": config_dict.placeholder(int),
        "until_fraction": config_dict.placeholder(float),
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps.

    Attributes:
      epochs: passes over the training set, the multiplier included.
      steps_per_epoch: full batches in one pass over the training set.
      total_steps: steps of the whole run.
      warmup_steps: steps of linear warm-up.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """When a method changes the topology, in steps.

    Attributes:
      interval: steps between topology updates.
      start: no topology update up to this step, and the interval counts from it.
      until: last step that may end with a topology update.
    """

    interval: int
    start: int
    until: int


def plan(config: Config, train_examples: int) -> Plan:
    """Converts epochs to steps.

    Args:
      config: a validated config.
      train_examples: size of the training set.

    Returns:
      The durations in steps.

    Raises:
      UsageError: if the training set is smaller than a batch.
    """
    steps_per_epoch = train_examples // config.batch_size
    if steps_per_epoch == 0:
        raise UsageError(
            f"batch_size={config.batch_size} must not exceed the {train_examples} "
            "training examples; lower it."
        )
    multiplier = config.training_multiplier
    epochs = max(1, round(config.epochs * multiplier))
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=epochs * steps_per_epoch,
        warmup_steps=round(config.warmup_epochs * multiplier * steps_per_epoch),
    )


def update_plan(config: Config, plan: Plan, method: str) -> UpdatePlan:
    """When a method changes the topology.

    What the method's own section says holds before what is said for all.

    Args:
      config: a validated config.
      plan: its durations in steps.
      method: a method that changes the topology.

    Returns:
      The steps; there is no topology update on the very last one, because what grows
      there would never be trained.
    """
    common, own = config.method, config.method[method]
    multiplier = config.training_multiplier
    interval = plan.steps_per_epoch * common.update_interval_epochs
    if own.update_interval_epochs is not None:
        interval = plan.steps_per_epoch * own.update_interval_epochs
    if own.update_interval_steps is not None:
        interval = own.update_interval_steps
    fraction = common.until_fraction
    if own.until_fraction is not None:
        fraction = own.until_fraction
    start = plan.steps_per_epoch * common.update_start_epochs
    return UpdatePlan(
        interval=max(1, round(interval * multiplier)),
        start=round(start * multiplier),
        until=min(round(fraction * plan.total_steps), plan.total_steps - 1),
    )


def ratio_at(pairs: Sequence[Sequence[float]], sparsity: float) -> float:
    """The value that a table by sparsity holds.

    Args:
      pairs: (sparsity, value), in any order; at least one.
      sparsity: where to look.

    Returns:
      The value; between two entries on the straight line through them, outside of
      all entries that of the nearest.

    >>> ratio_at(((0.9, 0.10), (0.95, 0.05), (0.98, 0.03)), 0.95)
    0.05
    """
    rows = sorted(map(tuple, pairs))
    known = [row[0] for row in rows]
    return float(np.interp(sparsity, known, [row[1] for row in rows]))


def is_streamed(data: Config) -> bool:
    """Whether a ``data`` section names a data set too large for memory."""
    return data.name == "imagenet2012" and data.source == "tfds"


def arm_names(config: Config) -> tuple[str, ...]:
    """The methods to train, the main one first and each once."""
    return tuple(dict.fromkeys((config.method.name, *config.compare)))


def close_match(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word that is meant, or all of them.

    >>> close_match("nurrev", ["neurrev", "set"])
    "did you mean 'neurrev'?"
    """
    known = list(known)
    match = difflib.get_close_matches(word, known, n=1)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known are {', '.join(known)}."


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Fields by dotted name.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    fields = {}
    for name, value in config.items():
        if isinstance(value, dict | ml_collections.ConfigDict):
            fields.update(flatten(value, f"{prefix}{name}."))
        else:
            fields[prefix + name] = value
    return fields


def to_json(config: Config) -> str:
    """The resolved config as JSON text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What distinguishes two configs, as ``field: old -> new``.

    Where the data lie and when checkpoints are written does not count: that may change
    between two starts of a run.

    Args:
      old: nested fields as read from JSON.
      new: nested fields as read from JSON.

    Returns:
      One entry per field, sorted by name.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
    ['b: 2 -> 3']
    """
    before, after = flatten(old), flatten(new)
    absent = "(absent)"
    return [
        f"{name}: {_show(before.get(name, absent))} -> {_show(after.get(name, absent))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, absent) != after.get(name, absent)
        and name not in _NOT_OF_THE_RUN
    ]


def _show(value: Any) -> str:
    return value if value == "(absent)" else json.dumps(value)
