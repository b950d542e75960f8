"""Fields of a config, their defaults and their rules.

Durations carry their unit in the name and are converted to steps in one place,
`plan`. A config file changes the defaults; the fields themselves are fixed here, so
a misspelled one is an error and not an option without effect.
"""

import difflib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np
from ml_collections import config_dict

from experiments import method_options
from experiments.errors import UsageError
from experiments.plan import Plan, UpdatePlan, every_so_many_epochs
from experiments.procedures import rounds as rounds_lib

# An `ml_collections.ConfigDict`, whose fields no type checker can know.
Config = Any

METHODS = method_options.METHODS

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
    for name, options in method_options.sections().items():
        config.method[name] = ml_collections.ConfigDict(options)
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

    # The examples that were forgotten least often can be left out after a number of
    # epochs (None: never), with any method. What is given in epochs, and the learning
    # rate, follow the epochs, which are shorter from there on; what is given in steps,
    # and update ratios that fall along a cosine, follow the steps.
    config.removal = ml_collections.ConfigDict()
    config.removal.after_epochs = config_dict.placeholder(int)
    config.removal.easy_examples = 0

    config.epochs = 160
    # Extended training: multiplies epochs, warm-up and all that concerns topology
    # updates, which are given for 1. An update interval of one step stays that.
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


def plan(config: Config, train_examples: int) -> Plan:
    """Converts epochs to steps.

    Args:
      config: a validated config; what its method trains on, and how often, counts.
      train_examples: size of the training set.

    Returns:
      The durations in steps.

    Raises:
      UsageError: if there are ever fewer examples to train on than a batch takes.
    """
    _require_a_batch(config, train_examples)
    active = active_examples(config, train_examples)
    steps_per_epoch = active // config.batch_size
    multiplier, epochs = config.training_multiplier, training_epochs(config)
    shorter, rounds, rewind = None, 0, 0
    if config.removal.easy_examples:
        after = max(1, round(config.removal.after_epochs * multiplier))
        left = active - config.removal.easy_examples
        shorter = (min(after, epochs - 1), left // config.batch_size)
    if config.method.name == "lth":
        rounds, _ = lottery_rounds(config)
        rewind = min(round(config.method.lth.rewind_epochs * multiplier), epochs - 1)
    lengths = Plan(epochs, steps_per_epoch, 0, 0, shorter=shorter)
    epochs += rounds * (epochs - rewind)
    return Plan(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=lengths.start_of(epochs),
        warmup_steps=round(config.warmup_epochs * multiplier * steps_per_epoch),
        train_examples=train_examples,
        shorter=shorter,
        rounds=rounds,
        rewind_epochs=rewind,
    )


def training_epochs(config: Config) -> int:
    """Epochs of one training, the multiplier included."""
    return max(1, round(config.epochs * config.training_multiplier))


def _require_a_batch(config: Config, train_examples: int) -> None:
    """Raises UsageError naming what leaves too few examples."""
    size, removed = config.batch_size, config.removal.easy_examples
    active = active_examples(config, train_examples)
    if removed and removed >= active:
        raise UsageError(
            f"removal.easy_examples={removed} must be less than the {active} training "
            "examples; lower it."
        )
    if active - removed >= size:
        return
    because, remedy = "", "lower it"
    if removed:
        because = f" that removal.easy_examples={removed} leaves of {active}"
        remedy = "lower one of them"
    elif active < train_examples:
        fraction = config.method.spfde.data_fraction
        because = f" that method.spfde.data_fraction={fraction} leaves of "
        because += f"{train_examples}"
        remedy = "lower it, or raise the fraction"
    raise UsageError(
        f"batch_size={size} must not exceed the {active - removed} training examples"
        f"{because}; {remedy}."
    )


def active_examples(config: Config, train_examples: int) -> int:
    """How many examples the method trains on at a time, before any are removed.

    Args:
      config: a validated config.
      train_examples: size of the training set.

    Returns:
      All of them, but for a method that keeps some of them back.
    """
    if config.method.name != "spfde":
        return train_examples
    return round(config.method.spfde.data_fraction * train_examples)


def lottery_rounds(config: Config) -> tuple[int, float]:
    """(rounds, part of the remaining weights that each prunes) of ``method.lth``."""
    own = config.method.lth
    if own.rounds is None:
        rounds = rounds_lib.rounds_needed(own.prune_fraction, config.sparsity)
        return rounds, own.prune_fraction
    return own.rounds, rounds_lib.prune_fraction(own.rounds, config.sparsity)


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
    fraction = common.until_fraction
    if own.until_fraction is not None:
        fraction = own.until_fraction
    until = min(plan.share(fraction, plan.total_steps), plan.total_steps - 1)
    start = common.update_start_epochs * multiplier
    if own.update_interval_steps is not None:
        steps = own.update_interval_steps
        # Each step is each step, however many there are.
        interval = 1 if steps == 1 else max(1, round(steps * multiplier))
        return UpdatePlan(interval, plan.step_at(start), until)
    epochs = common.update_interval_epochs
    if own.update_interval_epochs is not None:
        epochs = own.update_interval_epochs
    return every_so_many_epochs(plan, epochs * multiplier, start, until)


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


def methods_of(config: Config, method: str) -> tuple[str, ...]:
    """The method, and those whose sections it uses besides its own."""
    if method not in method_options.HOSTS:
        return (method,)
    return (method, *methods_of(config, config.method[method].host))


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
