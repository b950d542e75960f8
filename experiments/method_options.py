"""The options of every method: the sections of ``config.method``, and their ranges.

A schedule of None follows what the config says for all methods. Fractions "of training"
are of its epochs, and keep their meaning when it is made longer.
"""

import math
from typing import Any

from ml_collections import config_dict

# (low, high, whether high itself is excluded).
Range = tuple[float, float, bool]

_FRACTION: Range = (0, 1, False)
_NOT_NEGATIVE: Range = (0, math.inf, False)
_COUNT: Range = (1, math.inf, False)
_POSITIVE: Range = (1e-30, math.inf, False)


def sections() -> dict[str, dict[str, Any]]:
    """Every method's options with their defaults, by the method's name."""
    return {
        "neurrev": {
            **_schedule(),
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
        },
        "set": {
            **_schedule(),
            "update_ratio": 0.3,
            "ratio_schedule": "constant",
            "drop": "signed",
            "init_mask": "random",
        },
        "rigl": {
            **_schedule(),
            "update_ratio": 0.3,
            "ratio_schedule": "cosine",
            "init_mask": "random",
        },
        "itop": {
            **_schedule(until_fraction=1.0),
            "update_ratio": 0.5,
            "ratio_schedule": "cosine",
            "final_ratio": 0.005,
            "growth": "gradient",
            "prefer_new": False,
            "init_mask": "random",
        },
        "mest": {
            **_schedule(),
            # Of all weights, active or not.
            "update_ratio": config_dict.placeholder(float),
            "update_ratio_at": ((0.9, 0.02), (0.95, 0.01)),
            # Half of it from 3/4 of the updates on, and 0 at the last one.
            "ratio_schedule": "stages",
            "memory": "hard",  # or "soft": the bound that EM&S keeps
            "gradient_weight": 0.0,
            "slots": "keep",
            "init_mask": "random",
        },
        "snfs": {
            **_schedule(until_fraction=1.0),
            "update_ratio": 0.5,
            "ratio_schedule": "cosine",
            "final_ratio": 0.005,
            "momentum": 0.9,
            "redistribute": True,
            "init_mask": "random",
        },
        "deep_r": {
            **_schedule(steps=1, until_fraction=0.95),
            "temperatures": (1e-5, 1e-8, 1e-12, 1e-15),
            "temperatures_from": (0.125, 0.4, 0.7),  # of training
            "l1": 1e-5,
            "step_size": 0.01,
            "grown_start": 1e-12,
            "init_mask": "random",
        },
        "dsr": {
            **_schedule(steps=100, until_fraction=0.95),
            "interval_doubles_at": (0.125, 0.4, 0.7),  # of training; () for never
            "update_ratio": 0.1,
            "threshold": 1e-3,
            "tolerance": 0.1,
            "init_mask": "random",
        },
        "top_kast": {
            **_schedule(steps=100, until_fraction=1.0),
            "exploration_ratio": 0.1,
            # In the place of weight decay; None: as strong as that.
            "penalty": config_dict.placeholder(float),
            "backward": "magnitude",
            "slots": "zero",
        },
        # A change of variables around another method with its own section.
        "powerprop": {
            "host": "top_kast",
            "alpha": 2.0,
            # |w| of grown weights, which hosts that grow at zero need.
            "growth_start": config_dict.placeholder(float),
            # What `config.weight_decay` acts on: the weights, as in any other
            # network, or the "parameters", their roots.
            "weight_decay_on": "weights",
        },
        # Sparse from the first of these fractions of training to the second, and so on.
        "ac_dc": {
            "changes_at": (
                *(0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55),
                *(0.60, 0.65, 0.70, 0.75, 0.85),
            ),
            "scope": "global",
            "reset_slots": True,
        },
        "granet": {
            **_schedule(until_fraction=1.0),
            "update_ratio": 0.5,
            "ratio_schedule": "cosine",
            "final_ratio": 0.005,
            "initial_sparsity": 0.5,
            "sparse_from_fraction": 0.6875,  # of training, the sparsity is reached
        },
        "gradual_magnitude": {
            **_schedule(),
            "initial_sparsity": 0.0,
            "scope": "layer",
        },
        "chase": {
            **_schedule(until_fraction=1.0),
            "update_ratio": 0.05,
            "ratio_schedule": "cosine",
            "ratio_of": "total",
            "soft_until_fraction": 0.8125,  # of training
            "final_ratio": 0.05,
            "channel_sparsity": 0.0,
            "channel_until_fraction": 0.8125,  # of training
            "channel_floor": 0.5,
        },
        "static": {"init_mask": "random"},
        # Masks that are drawn once, from the initial weights and some examples.
        "magnitude": {"spread": "global"},  # or "distribution": that of the config
        "snip": {"spread": "global", "examples": 128},
        "grasp": {
            "spread": "global",
            "examples_per_class": 10,
            "temperature": 200.0,
            "parts": 2,
            "redraw": "linear",
        },
        "synflow": {"spread": "global", "rounds": 100},
        "fish": {"spread": "global", "examples": 256, "mode": "zero"},
        # Iterative magnitude pruning: a round trains, prunes and rewinds, and after the
        # last one the weights that are left are trained once more.
        "lth": {
            # None: as many as `prune_fraction` needs for the sparsity.
            "rounds": config_dict.placeholder(int),
            "prune_fraction": 0.2,  # of the remaining weights, in each round
            "rewind_epochs": 0,  # to the state after so many epochs
        },
        # Layer freezing and data sieving, around another method with its own section.
        "spfde": {
            "host": "mest",
            "freeze_from_fraction": 0.6,  # of training; 1: no layer is ever frozen
            "data_fraction": 0.85,  # of the examples are active; 1: all, no sieving
            "sieve_every_epochs": 10,
            "exchange_fraction": 0.05,  # of all examples, at every sieving
        },
    }


def _schedule(
    steps: int | None = None, until_fraction: float | None = None
) -> dict[str, Any]:
    """Where a method differs from the experiment's schedule; None: it does not."""
    fields = {
        "update_interval_epochs": config_dict.placeholder(float),
        "update_interval_steps": config_dict.placeholder(int),
        "until_fraction": config_dict.placeholder(float),
    }
    if steps is not None:
        fields["update_interval_steps"].set(steps)
    if until_fraction is not None:
        fields["until_fraction"].set(until_fraction)
    return fields


METHODS = (*sections(), "dense")
"""All methods, those that are sparse first."""

SCHEDULED = tuple(n for n, own in sections().items() if "until_fraction" in own)
"""Methods that follow the schedule of topology updates."""

OPEN = {f"method.{name}.{field}" for name in SCHEDULED for field in _schedule()}
"""Options that may be None whatever they are by default."""

ONE_SHOT = ("magnitude", "snip", "grasp", "synflow", "fish")
"""Methods whose masks are drawn once, from the initial weights."""

# SpFDE: those that keep the number of active weights of every layer. Powerpropagation:
# all with a record of their own; the library says which of them a power fits around.
HOSTS = {
    "spfde": ("mest", "neurrev", "set", "rigl", "itop", "deep_r", "top_kast", "static"),
    "powerprop": (*SCHEDULED, "ac_dc", "static"),
}
"""What a method can go around."""

_NO_HOST = {
    **dict.fromkeys(
        ONE_SHOT, "draws its masks before training; 'static' trains under a fixed mask"
    ),
    "lth": "is several trainings",
    "dense": "has no masks",
    **dict.fromkeys(HOSTS, "goes around another method itself"),
}
NOT_HOSTS = {
    "powerprop": _NO_HOST,
    "spfde": {
        **_NO_HOST,
        **dict.fromkeys(
            ("dsr", "snfs", "granet", "chase"),
            "moves weights between layers, which frozen layers cannot take part in",
        ),
        **dict.fromkeys(
            ("ac_dc", "gradual_magnitude"),
            "changes how many weights are active, and frozen layers would keep theirs",
        ),
    },
}
"""Why it cannot go around the others."""

# Where a field means the same for every method that has it.
_COMMON: dict[str, Range] = {
    "update_interval_epochs": (1e-6, math.inf, False),
    "update_interval_steps": _COUNT,
    "until_fraction": _FRACTION,
    "initial_sparsity": (0, 1, True),
    "examples": _COUNT,
}

CHOICES: dict[str, tuple[str, ...]] = {
    **{f"method.{name}.spread": ("global", "distribution") for name in ONE_SHOT},
    "method.grasp.redraw": ("linear", "nothing"),
    "method.fish.mode": ("zero", "update"),
    "method.powerprop.weight_decay_on": ("weights", "parameters"),
}
"""Words of options that the library does not see before training."""

RANGES: dict[str, Range] = {
    **{
        f"method.{name}.{field}": limits
        for name, own in sections().items()
        for field, limits in _COMMON.items()
        if field in own
    },
    "method.granet.sparse_from_fraction": _FRACTION,
    "method.chase.soft_until_fraction": _FRACTION,
    "method.chase.channel_until_fraction": _FRACTION,
    "method.powerprop.growth_start": _POSITIVE,
    "method.top_kast.penalty": _NOT_NEGATIVE,
    "method.grasp.examples_per_class": _COUNT,
    "method.grasp.parts": _COUNT,
    "method.grasp.temperature": _POSITIVE,
    "method.synflow.rounds": _COUNT,
    "method.lth.rounds": (1, 1000, False),
    "method.lth.prune_fraction": (1e-3, 1, True),
    "method.lth.rewind_epochs": _NOT_NEGATIVE,
    "method.spfde.freeze_from_fraction": _FRACTION,
    "method.spfde.data_fraction": (0.01, 1, False),
    "method.spfde.sieve_every_epochs": _COUNT,
    "method.spfde.exchange_fraction": (1e-6, 1, False),
}
