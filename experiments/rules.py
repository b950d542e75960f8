"""What the fields of a config must satisfy, checked before anything is touched."""

import math
from collections.abc import Iterable
from typing import Any

from experiments import procedure_rules
from experiments.config import (
    METHODS,
    Config,
    arm_names,
    close_match,
    default_config,
    flatten,
)
from experiments.errors import UsageError
from experiments.method_options import (
    CHOICES,
    HOSTS,
    NOT_HOSTS,
    OPEN,
    RANGES,
    SCHEDULED,
)

SOURCES = {
    "digits": ("sklearn", "npz", "generated"),
    "cifar10": ("tfds", "npz", "generated"),
    "cifar100": ("tfds", "npz", "generated"),
    "imagenet2012": ("tfds", "npz", "generated"),
}
"""Data sets, and where each can come from; the usual source first."""

NETWORKS = ("resnet", "imagenet_resnet", "vgg", "mobilenet")


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
        _check_choice(where, name, METHODS, "method")
    _check_choice("data.name", config.data.name, SOURCES, "data set")
    _check_choice("model.name", config.model.name, NETWORKS, "network")
    for field, choices in _CHOICES.items():
        value = flatten(config)[field]
        if value not in choices:
            listed = " or ".join(
                (", ".join(map(repr, choices[:-1])), repr(choices[-1]))
            )
            raise UsageError(f"{field}={value!r} is unknown; choose {listed}.")
    sources = SOURCES[config.data.name]
    if config.data.source not in sources:
        raise UsageError(
            f"data.source={config.data.source!r} does not go with data.name="
            f"{config.data.name!r}; choose {', '.join(map(repr, sources))}."
        )
    _check_ranges(config)
    _check_criterion(config.dormant.criterion, config.dormant.threshold)
    _check_model(config.model)
    _check_method_tables(config)
    for name, hosts in HOSTS.items():
        if name in arm_names(config):
            host = config.method[name].host
            if host in NOT_HOSTS[name]:
                raise UsageError(
                    f"method.{name}.host={host!r} cannot be: it "
                    f"{NOT_HOSTS[name][host]}. Choose {', '.join(hosts)}."
                )
            _check_choice(f"method.{name}.host", host, hosts, "host")
    procedure_rules.check(config)
    if config.warmup_epochs >= config.epochs:
        raise UsageError(
            f"warmup_epochs={config.warmup_epochs} must be less than epochs="
            f"{config.epochs}."
        )
    if config.batch_size % config.accumulation_steps:
        raise UsageError(
            f"batch_size={config.batch_size} must be a multiple of accumulation_steps="
            f"{config.accumulation_steps}."
        )


def _check_choice(where: str, value: Any, known: Iterable[str], what: str) -> None:
    if value not in known:
        raise UsageError(
            f"{where}: there is no {what} {value!r}; {close_match(str(value), known)}"
        )


_CHOICES: dict[str, tuple[str, ...]] = {
    "distribution": ("uniform", "er", "erk"),
    "model.block": ("basic", "bottleneck"),
    "model.dtype": ("float32", "bfloat16"),
    "learning_rate_changes": ("every_step", "every_epoch"),
    "weight_decay_on": ("all", "all_but_norm"),
    "dormant.criterion": ("zero", "apoz", "score"),
    **CHOICES,
}

# Field -> (low, high, whether high itself is excluded).
_RANGES: dict[str, tuple[float, float, bool]] = {
    "seed": (0, 2**31 - 1, False),
    "sparsity": (0, 1, True),
    "method.update_interval_epochs": (1e-6, math.inf, False),
    "method.update_start_epochs": (0, math.inf, False),
    "method.until_fraction": (0, 1, False),
    "data.image_size": (8, 4096, False),
    "data.test_fraction": (0.01, 0.9, False),
    "data.crop_padding": (0, 64, False),
    "data.generated_train": (1, math.inf, False),
    "data.generated_test": (1, math.inf, False),
    "data.stream_shares": (1, math.inf, False),
    "data.shuffle_buffer": (1, math.inf, False),
    "model.width_multiplier": (1e-6, math.inf, False),
    "removal.after_epochs": (1, math.inf, False),
    "removal.easy_examples": (0, math.inf, False),
    "epochs": (1, math.inf, False),
    "training_multiplier": (1e-6, math.inf, False),
    "batch_size": (1, math.inf, False),
    "accumulation_steps": (1, math.inf, False),
    "learning_rate": (0, math.inf, False),
    "final_learning_rate": (0, math.inf, False),
    "warmup_epochs": (0, math.inf, False),
    "momentum": (0, 1, True),
    "weight_decay": (0, math.inf, False),
    "label_smoothing": (0, 1, True),
    "eval_batch_size": (1, math.inf, False),
    "dormant.examples": (1, math.inf, False),
    "dormant.every_epochs": (1, math.inf, False),
    "steps_per_call": (1, math.inf, False),
    "log_every_steps": (1, math.inf, False),
    "checkpoint_every_epochs": (1, math.inf, False),
    "checkpoint_every_steps": (1, math.inf, False),
    "checkpoints_to_keep": (2, math.inf, False),
    **RANGES,
}


def _check_ranges(config: Config) -> None:
    fields, defaults = flatten(config), flatten(default_config())
    for name, (low, high, open_end) in _RANGES.items():
        value = fields[name]
        # What may be left open is None by default, or the schedule of a method, which
        # then follows what is said for all.
        if value is None and (defaults[name] is None or name in OPEN):
            continue
        is_inside = (
            isinstance(value, int | float)
            and math.isfinite(value)
            and low <= value <= high
            and not (open_end and value == high)
        )
        if not is_inside:
            raise UsageError(f"{name}={value!r} must {_rule(low, high, open_end)}.")


def _rule(low: float, high: float, open_end: bool) -> str:
    if math.isinf(high):
        return "be positive" if 0 < low <= 1e-6 else f"be at least {low:g}"
    return f"lie in [{low:g}, {high:g}{')' if open_end else ']'}"


def _check_criterion(criterion: str, threshold: float | None) -> None:
    if threshold is not None and criterion == "zero":
        raise UsageError(
            f"dormant.threshold={threshold} has no effect with dormant.criterion="
            "'zero'; leave it out, or choose 'apoz' or 'score'."
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"dormant.threshold={threshold} must lie in [0, 1].")


def _check_model(model: Config) -> None:
    if model.name == "mobilenet":
        return
    if len(model.stage_sizes) != len(model.widths) or not len(model.widths):
        raise UsageError(
            f"model.stage_sizes={model.stage_sizes} and model.widths={model.widths} "
            "must have one entry per stage each; give both the same length."
        )
    for name in ("stage_sizes", "widths"):
        if any(not isinstance(n, int) or n < 1 for n in model[name]):
            raise UsageError(
                f"model.{name}={model[name]} must hold whole numbers of at least 1."
            )


def _check_method_tables(config: Config) -> None:
    for name in SCHEDULED:
        own = config.method[name]
        both = own.update_interval_epochs, own.update_interval_steps
        if None not in both:
            raise UsageError(
                f"method.{name} has update_interval_epochs={both[0]} and "
                f"update_interval_steps={both[1]}; give one of them."
            )
    for name in ("neurrev", "mest"):
        pairs = config.method[name].update_ratio_at
        is_table = len(pairs) > 0 and all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs
        )
        if not is_table:
            raise UsageError(
                f"method.{name}.update_ratio_at={pairs} must hold (sparsity, ratio) "
                "pairs, such as ((0.9, 0.1), (0.95, 0.05))."
            )


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
