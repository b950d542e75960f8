"""What pruning in rounds, freezing, sieving and removing examples go with."""

from experiments.config import (
    Config,
    arm_names,
    is_streamed,
    methods_of,
    training_epochs,
)
from experiments.errors import UsageError


def check(config: Config) -> None:
    """Checks what prunes in rounds, freezes, sieves or removes.

    Args:
      config: a config of which each field by itself is in order.

    Raises:
      UsageError: naming the field, its value, the rule and the remedy.
    """
    arms = arm_names(config)
    lth, spfde, removal = config.method.lth, config.method.spfde, config.removal
    if "lth" in arms:
        if not config.sparsity:
            raise UsageError(
                "sparsity=0 leaves nothing to prune for method 'lth'; give a sparsity "
                "above 0, or train 'dense'."
            )
        if lth.rewind_epochs >= config.epochs:
            raise UsageError(
                f"method.lth.rewind_epochs={lth.rewind_epochs} must be less than "
                f"epochs={config.epochs}."
            )
    if "spfde" in arms:
        _check_spfde(config)
    if "powerprop" in arms:
        own = config.method.powerprop
        if own.host == "top_kast" and own.weight_decay_on == "parameters":
            raise UsageError(
                "method.powerprop.weight_decay_on='parameters' does not go with "
                "method.powerprop.host='top_kast', whose penalty is on the weights and "
                "takes the place of weight decay; choose 'weights', or another host."
            )
    sieves = "spfde" in arms and spfde.data_fraction < 1
    if removal.easy_examples:
        _check_removal(config, arms)
    elif removal.after_epochs is not None:
        raise UsageError(
            f"removal.after_epochs={removal.after_epochs} has no effect with "
            "removal.easy_examples=0; say how many are to be removed."
        )
    if "grasp" in arms and is_streamed(config.data):
        raise UsageError(
            "method 'grasp' scores as many examples of every class, and a stream is "
            "not sorted by class; use 'snip', or data that fit into memory."
        )
    if (sieves or removal.easy_examples) and is_streamed(config.data):
        which = (
            f"removal.easy_examples={removal.easy_examples}"
            if removal.easy_examples
            else f"method.spfde.data_fraction={spfde.data_fraction}"
        )
        raise UsageError(
            f"{which} chooses among examples by how each was classified, and streamed "
            "data are read in shares whose examples have no number; set it to "
            f"{0 if removal.easy_examples else 1}, or use data that fit into memory."
        )


# What does not keep the number of active weights of every layer.
_MOVING = (
    (
        "neurrev",
        "scope",
        "global",
        "moves weights between layers, which frozen layers cannot take part in; choose "
        "'layer'",
    ),
    (
        "neurrev",
        "too_few",
        "drift",
        "changes how many weights of a layer are active, and frozen layers would keep "
        "theirs; choose 'fewer'",
    ),
    (
        "mest",
        "memory",
        "soft",
        "takes weights back by the end of training that frozen layers would keep; "
        "choose 'hard'",
    ),
)


def _check_spfde(config: Config) -> None:
    own, epochs = config.method.spfde, training_epochs(config)
    for host, field, value, reason in _MOVING:
        if own.host == host and config.method[host][field] == value:
            raise UsageError(
                f"method.{host}.{field}={value!r} {reason} under SpFDE, or leave "
                "'spfde' out."
            )
    if own.data_fraction == own.freeze_from_fraction == 1:
        raise UsageError(
            "method.spfde.data_fraction=1 and method.spfde.freeze_from_fraction=1 "
            f"leave nothing but its host; train {own.host!r} instead."
        )
    if own.freeze_from_fraction < 1 and round(own.freeze_from_fraction * epochs) >= (
        epochs
    ):
        raise UsageError(
            f"method.spfde.freeze_from_fraction={own.freeze_from_fraction} comes to "
            f"the end of {epochs} epochs, so that no layer is ever frozen; lower it, "
            "or set it to 1 to freeze none."
        )
    if own.data_fraction == 1:
        return
    every = max(1, round(own.sieve_every_epochs * config.training_multiplier))
    if every >= epochs:
        raise UsageError(
            f"method.spfde.sieve_every_epochs={own.sieve_every_epochs} is as long as "
            f"all of {epochs} epochs, so that no examples are ever exchanged; lower "
            "it, or train on all with method.spfde.data_fraction=1."
        )
    kept_back = round(1 - own.data_fraction, 9)
    if kept_back < own.exchange_fraction:
        raise UsageError(
            f"method.spfde.exchange_fraction={own.exchange_fraction} must not "
            f"exceed the part of the examples that is kept back, {kept_back} with "
            f"data_fraction={own.data_fraction}; lower one of them."
        )


def _check_removal(config: Config, arms: tuple[str, ...]) -> None:
    removal = config.removal
    what = f"removal.easy_examples={removal.easy_examples}"
    if removal.after_epochs is None:
        raise UsageError(
            f"{what} needs removal.after_epochs, the epochs after which they go."
        )
    if removal.after_epochs >= config.epochs:
        raise UsageError(
            f"removal.after_epochs={removal.after_epochs} must be less than epochs="
            f"{config.epochs}."
        )
    if training_epochs(config) < 2:
        raise UsageError(
            f"{what} needs an epoch before it and one after, and with "
            f"training_multiplier={config.training_multiplier} there is one in all; "
            "raise the multiplier."
        )
    dsr = config.method.dsr
    by_epochs = dsr.update_interval_steps is None
    used = {name for arm in arms for name in methods_of(config, arm)}
    if "dsr" in used and by_epochs and dsr.interval_doubles_at:
        raise UsageError(
            f"{what} makes epochs shorter, and the intervals of method 'dsr' that "
            "double are in steps; give method.dsr.update_interval_steps, or "
            "method.dsr.interval_doubles_at=()."
        )
    for arm in {"lth", "spfde"} & set(arms):
        reason = {
            "lth": "each of its rounds is a training with all examples",
            "spfde": "it chooses its examples itself (method.spfde.data_fraction)",
        }[arm]
        raise UsageError(f"{what} does not go with method {arm!r}: {reason}.")
