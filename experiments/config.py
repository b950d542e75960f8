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

from experiments import method_options
from experiments.errors import UsageError
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
    # epochs (None: never), with any method.
    config.removal = ml_collections.ConfigDict()
    config.removal.after_epochs = config_dict.placeholder(int)
    config.removal.easy_examples = 0

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


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps.

    Epochs and steps are counted from 0. Times past the end of the run may be asked
    for, and steps may be traced.

    Attributes:
      epochs: passes over the active training examples, the multiplier included; of
        all trainings, where there are several.
      steps_per_epoch: full batches in one pass.
      total_steps: steps of the whole run.
      warmup_steps: steps of linear warm-up.
      train_examples: size of the training set, active or not.
      shorter: (epochs, steps): after so many epochs an epoch has only so many steps;
        None if all are alike.
      rounds: how often training starts again.
      rewind_epochs: from which epoch of the first training on.
    """

    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    train_examples: int = 0
    shorter: tuple[int, int] | None = None
    rounds: int = 0
    rewind_epochs: int = 0

    def epoch_of(self, step: Any) -> Any:
        """The epoch that a step belongs to."""
        if self.shorter is None:
            return step // self.steps_per_epoch
        epochs, steps = self.shorter
        late = _excess(step, epochs * self.steps_per_epoch)
        return (step - late) // self.steps_per_epoch + late // steps

    def start_of(self, epoch: Any) -> Any:
        """The first step of an epoch."""
        if self.shorter is None:
            return epoch * self.steps_per_epoch
        epochs, steps = self.shorter
        late = _excess(epoch, epochs)
        return (epoch - late) * self.steps_per_epoch + late * steps

    def epochs_at(self, step: int) -> float:
        """Epochs after so many steps, with what has been done of the last."""
        epoch = self.epoch_of(step)
        start, end = self.start_of(epoch), self.start_of(epoch + 1)
        return epoch + (step - start) / (end - start)

    @property
    def training_epochs(self) -> int:
        """Epochs of the first training; the others repeat its end."""
        repeated = self.rounds * self.rewind_epochs
        return (self.epochs + repeated) // (self.rounds + 1)

    @property
    def training_steps(self) -> int:
        """Steps of the first training: what learning-rate schedules span."""
        return self.start_of(self.training_epochs)

    def round_of(self, epoch: int) -> int:
        """The training that an epoch belongs to, 0 for the first."""
        again = self.training_epochs - self.rewind_epochs
        return _excess(epoch - self.rewind_epochs, 0) // again

    def epoch_in_training(self, epoch: int) -> int:
        """The epoch of the first training that an epoch repeats."""
        again = self.training_epochs - self.rewind_epochs
        return epoch - self.round_of(epoch) * again

    def step_in_training(self, step: int) -> int:
        """The step of the first training that a step repeats."""
        epoch = self.epoch_of(step)
        again = epoch - self.epoch_in_training(epoch)
        return step - self.start_of(again)


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

    @property
    def last(self) -> int:
        """The last step that does."""
        return self.start + (self.until - self.start) // self.interval * self.interval


def plan(config: Config, train_examples: int) -> Plan:
    """Converts epochs to steps.

    Args:
      config: a validated config; what its method trains on, and how often, counts.
      train_examples: size of the training set.

    Returns:
      The durations in steps.

    Raises:
      UsageError: if the training set is smaller than a batch.
    """
    active = active_examples(config, train_examples)
    steps_per_epoch = active // config.batch_size
    multiplier = config.training_multiplier
    epochs = max(1, round(config.epochs * multiplier))
    shorter, rounds, rewind = None, 0, 0
    if config.removal.easy_examples:
        active -= config.removal.easy_examples
        after = min(round(config.removal.after_epochs * multiplier), epochs - 1)
        shorter = (after, max(active, 0) // config.batch_size)
    if active < config.batch_size:
        raise UsageError(
            f"batch_size={config.batch_size} must not exceed the {max(active, 0)} "
            "training examples; lower it."
        )
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


def _excess(value: Any, bound: int) -> Any:
    """max(value - bound, 0), of whole numbers of any kind."""
    over = value - bound
    return (over + abs(over)) // 2


def _show(value: Any) -> str:
    return value if value == "(absent)" else json.dumps(value)
