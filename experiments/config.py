"""Fields of a config, their defaults and their rules.

Durations carry their unit in the name and are converted to steps in one place,
`plan`. A config file changes the defaults; the fields themselves are fixed here, so
a misspelled one is an error and not an option without effect.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from typing import Any

import ml_collections
from ml_collections import config_dict

from experiments.errors import UsageError

# An `ml_collections.ConfigDict`, whose fields no type checker can know.
Config = Any

SPARSE_METHODS = ("neurrev", "set", "rigl", "static")
METHODS = (*SPARSE_METHODS, "dense")


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
            "update_ratio": 0.1,
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
            "update_ratio": 0.3,
            "ratio_schedule": "constant",
            "drop": "signed",
            "init_mask": "random",
        }
    )
    config.method.rigl = ml_collections.ConfigDict(
        {"update_ratio": 0.3, "ratio_schedule": "cosine", "init_mask": "random"}
    )
    config.method.static = ml_collections.ConfigDict({"init_mask": "random"})
    config.compare = ("dense", "set")

    config.sparsity = 0.9
    config.distribution = "erk"

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"
    config.data.test_fraction = 0.25
    config.data.shift_pixels = 0  # augmentation: random translation, zero-padded

    config.model = ml_collections.ConfigDict()
    config.model.name = "resnet"
    config.model.stage_sizes = (5, 5, 5)
    config.model.widths = (32, 64, 128)
    config.model.sync_batch_norm = True  # batch statistics over all devices

    config.epochs = 160
    config.batch_size = 64  # over all devices
    config.learning_rate = 0.1
    config.final_learning_rate = 0.0
    config.warmup_epochs = 0.0
    config.momentum = 0.9
    config.weight_decay = 1e-4  # coupled L2 on all parameters

    config.eval_batch_size = 512  # over all devices
    config.dormant = ml_collections.ConfigDict()
    config.dormant.examples = 2048  # of the training set, never augmented
    config.dormant.every_epochs = 1
    config.dormant.criterion = "zero"  # or "apoz", "score"
    config.dormant.threshold = config_dict.placeholder(float)

    config.checkpoint_every_epochs = 1
    config.checkpoints_to_keep = 3
    return config.lock()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config's durations in steps.

    Attributes:
      steps_per_epoch: full batches in one pass over the training set.
      total_steps: steps of the whole run.
      warmup_steps: steps of linear warm-up.
      update_interval: steps between topology updates.
      update_start: no topology update up to this step, and the interval counts from
        it.
      until: last step that may end with a topology update.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    update_interval: int
    update_start: int
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
    total = config.epochs * steps_per_epoch
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        update_interval=max(
            1, round(config.method.update_interval_epochs * steps_per_epoch)
        ),
        update_start=round(config.method.update_start_epochs * steps_per_epoch),
        until=round(config.method.until_fraction * total),
    )


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
    ]


def validate(config: Config) -> None:
    """Checks everything that can be checked without data or devices.

    Args:
      config: the config as the command line left it.

    Raises:
      UsageError: naming the field, its value, the rule and the remedy.
    """
    _check_fields(config)
    for where, name in (
        ("method.name", config.method.name),
        *(("compare", name) for name in config.compare),
    ):
        if name not in METHODS:
            raise UsageError(
                f"{where}: there is no method {name!r}; {close_match(name, METHODS)}"
            )
    if config.distribution not in ("uniform", "er", "erk"):
        raise UsageError(
            f"distribution={config.distribution!r} is unknown; choose 'uniform', 'er' "
            "or 'erk'."
        )
    _check_criterion(config.dormant.criterion, config.dormant.threshold)
    if len(config.model.stage_sizes) != len(config.model.widths) or not len(
        config.model.widths
    ):
        raise UsageError(
            f"model.stage_sizes={config.model.stage_sizes} and model.widths="
            f"{config.model.widths} must have one entry per stage each; give both the "
            "same length."
        )
    for name in ("stage_sizes", "widths"):
        if any(not isinstance(n, int) or n < 1 for n in config.model[name]):
            raise UsageError(
                f"model.{name}={config.model[name]} must hold whole numbers of at "
                "least 1."
            )
    fields = flatten(config)
    for name, (low, high, open_end) in _RANGES.items():
        value = fields[name]
        is_inside = (
            isinstance(value, int | float)
            and math.isfinite(value)
            and low <= value <= high
            and not (open_end and value == high)
        )
        if not is_inside:
            raise UsageError(f"{name}={value!r} must {_rule(low, high, open_end)}.")
    if config.warmup_epochs >= config.epochs:
        raise UsageError(
            f"warmup_epochs={config.warmup_epochs} must be less than epochs="
            f"{config.epochs}."
        )


def check_overrides(config: Config, changed: Iterable[str]) -> None:
    """Refuses options of methods that this run does not train.

    Args:
      config: a validated config.
      changed: dotted names of the fields set on the command line.

    Raises:
      UsageError: if one of them would have no effect.
    """
    arms = arm_names(config)
    for field in changed:
        parts = field.split(".")
        is_option = len(parts) == 3 and parts[0] == "method"
        if is_option and parts[1] not in arms:
            raise UsageError(
                f"{field} has no effect, because this run trains {', '.join(arms)}; "
                f"leave it out, or add {parts[1]!r} to compare."
            )


# Field -> (low, high, whether high itself is excluded).
_RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, False),
    "sparsity": (0, 1, True),
    "method.update_interval_epochs": (1e-6, math.inf, False),
    "method.update_start_epochs": (0, math.inf, False),
    "method.until_fraction": (0, 1, False),
    "data.test_fraction": (0.01, 0.9, False),
    "data.shift_pixels": (0, 64, False),
    "epochs": (1, math.inf, False),
    "batch_size": (1, math.inf, False),
    "learning_rate": (0, math.inf, False),
    "final_learning_rate": (0, math.inf, False),
    "warmup_epochs": (0, math.inf, False),
    "momentum": (0, 1, True),
    "weight_decay": (0, math.inf, False),
    "eval_batch_size": (1, math.inf, False),
    "dormant.examples": (1, math.inf, False),
    "dormant.every_epochs": (1, math.inf, False),
    "checkpoint_every_epochs": (1, math.inf, False),
    "checkpoints_to_keep": (2, math.inf, False),
}


def _rule(low: float, high: float, open_end: bool) -> str:
    if math.isinf(high):
        return "be positive" if low == 1e-6 else f"be at least {low:g}"
    return f"lie in [{low:g}, {high:g}{')' if open_end else ']'}"


def _check_criterion(criterion: str, threshold: float | None) -> None:
    if criterion not in ("zero", "apoz", "score"):
        raise UsageError(
            f"dormant.criterion={criterion!r} is unknown; choose 'zero', 'apoz' or "
            "'score'."
        )
    if threshold is not None and criterion == "zero":
        raise UsageError(
            f"dormant.threshold={threshold} has no effect with dormant.criterion="
            "'zero'; leave it out, or choose 'apoz' or 'score'."
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"dormant.threshold={threshold} must lie in [0, 1].")


def _check_fields(config: Config) -> None:
    known, given = flatten(default_config()), flatten(config)
    for name in given:
        if name not in known:
            raise UsageError(
                f"the config has an unknown field {name!r}; {close_match(name, known)}"
            )
    for name in known:
        if name not in given:
            raise UsageError(
                f"the config lacks the field {name!r}; start it from "
                "experiments.config.default_config()."
            )


def _show(value: Any) -> str:
    return value if value == "(absent)" else json.dumps(value)
