"""What pruning in rounds, freezing, sieving and removing examples go with."""

from experiments.config import Config, arm_names, is_streamed
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
        if spfde.host == "neurrev" and config.method.neurrev.scope == "global":
            raise UsageError(
                "method.neurrev.scope='global' moves weights between layers, which "
                "frozen layers cannot take part in; choose 'layer' under SpFDE."
            )
        if spfde.data_fraction == spfde.freeze_from_fraction == 1:
            raise UsageError(
                "method.spfde.data_fraction=1 and method.spfde.freeze_from_fraction=1 "
                f"leave nothing but its host; train {spfde.host!r} instead."
            )
        kept_back = round(1 - spfde.data_fraction, 9)
        if 0 < kept_back < spfde.exchange_fraction:
            raise UsageError(
                f"method.spfde.exchange_fraction={spfde.exchange_fraction} must not "
                f"exceed the part of the examples that is kept back, {kept_back} with "
                f"data_fraction={spfde.data_fraction}; lower one of them."
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
    for arm in {"lth", "spfde"} & set(arms):
        reason = {
            "lth": "each of its rounds is a training with all examples",
            "spfde": "it chooses its examples itself (method.spfde.data_fraction)",
        }[arm]
        raise UsageError(f"{what} does not go with method {arm!r}: {reason}.")
