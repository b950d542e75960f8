"""Options without effect: refused where they are given on the command line."""

from collections.abc import Callable, Iterable

from experiments.config import Config, arm_names, is_streamed, methods_of
from experiments.errors import UsageError
from experiments.method_options import ONE_SHOT, SCHEDULED


def check(config: Config, changed: Iterable[str]) -> None:
    """Refuses options that would have no effect on any method of this run.

    An option for all methods may be given where it concerns some of them only. What a
    config file sets is not looked at: it may set more than one run uses.

    Args:
      config: a validated config.
      changed: dotted names of the fields set on the command line.

    Raises:
      UsageError: if one of them would have no effect.
    """
    arms = arm_names(config)
    used = _used_methods(config)
    for field in changed:
        parts = field.split(".")
        is_option = len(parts) == 3 and parts[0] == "method"
        if is_option and parts[1] not in used:
            raise UsageError(
                f"{field} has no effect, because this run trains {', '.join(arms)}; "
                f"leave it out, or add {parts[1]!r} to compare."
            )
        for pattern, is_used, needs in _USED_IF:
            if pattern == field and not is_used(config):
                raise UsageError(
                    f"{field} has no effect {needs}; leave it out, or change that too."
                )
        if parts[0] == "method" and parts[-1] in _OWN_SCHEDULE and len(parts) == 2:
            _require_a_follower(config, used, field)


def _used_methods(config: Config) -> tuple[str, ...]:
    """The methods to train and those they go around, in a fixed order."""
    arms = arm_names(config)
    return tuple(dict.fromkeys(m for arm in arms for m in methods_of(config, arm)))


_Used = Callable[[Config], bool]

# Field, whether it is used, and what it would need.
_USED_IF: tuple[tuple[str, _Used, str], ...] = (
    (
        "data.test_fraction",
        lambda c: c.data.source == "sklearn",
        "unless data.source='sklearn'",
    ),
    (
        "data.image_size",
        lambda c: c.data.name == "imagenet2012" and c.data.source != "npz",
        "unless data.name='imagenet2012' is streamed or generated",
    ),
    (
        "data.dir",
        lambda c: c.data.source in ("tfds", "npz"),
        "unless data.source is 'tfds' or 'npz'",
    ),
    *(
        (
            f"data.generated_{part}",
            lambda c: c.data.source == "generated",
            "unless data.source='generated'",
        )
        for part in ("train", "test")
    ),
    *(
        (
            f"data.{field}",
            lambda c: is_streamed(c.data),
            "unless data are streamed (imagenet2012 from tfds)",
        )
        for field in ("stream_shares", "shuffle_buffer")
    ),
    *(
        (
            f"data.{field}",
            lambda c: not is_streamed(c.data),
            "on streamed data, which are always cropped and flipped",
        )
        for field in ("crop_padding", "flip")
    ),
    *(
        (
            f"model.{field}",
            lambda c: c.model.name != "mobilenet",
            "on model.name='mobilenet'",
        )
        for field in ("stage_sizes", "widths")
    ),
    (
        "model.block",
        lambda c: c.model.name == "imagenet_resnet",
        "unless model.name='imagenet_resnet'",
    ),
    (
        "model.width_multiplier",
        lambda c: c.model.name == "mobilenet",
        "unless model.name='mobilenet'",
    ),
    (
        "sparsity",
        lambda c: any(name != "dense" for name in arm_names(c)),
        "where only 'dense' is trained",
    ),
    (
        "distribution",
        lambda c: any(_uses_distribution(c, name) for name in arm_names(c)),
        "where only 'dense' is trained, and masks drawn over all layers together "
        "(spread='global')",
    ),
    *(
        (
            f"method.{name}.final_ratio",
            lambda c, name=name: c.method[name].ratio_schedule == "cosine",
            f"unless method.{name}.ratio_schedule='cosine'",
        )
        for name in ("itop", "snfs", "granet")
    ),
    (
        "method.lth.prune_fraction",
        lambda c: c.method.lth.rounds is None,
        "where method.lth.rounds is set, which the fraction then follows from",
    ),
    *(
        (
            f"method.spfde.{field}",
            lambda c: c.method.spfde.data_fraction < 1,
            "with method.spfde.data_fraction=1, where all examples are active",
        )
        for field in ("sieve_every_epochs", "exchange_fraction")
    ),
    *(
        (
            f"method.{name}.update_ratio_at",
            lambda c, name=name: c.method[name].update_ratio is None,
            f"where method.{name}.update_ratio is set",
        )
        for name in ("neurrev", "mest")
    ),
)


def _uses_distribution(config: Config, name: str) -> bool:
    """Whether the masks that a method starts with follow `config.distribution`."""
    if name in ONE_SHOT:
        return config.method[name].spread == "distribution"
    return name != "dense"


_OWN_SCHEDULE = {
    "update_interval_epochs": ("update_interval_epochs", "update_interval_steps"),
    "update_start_epochs": (),
    "until_fraction": ("until_fraction",),
}


def _require_a_follower(config: Config, arms: tuple[str, ...], field: str) -> None:
    """Refuses a common schedule that no method has, or every method overrides."""
    rivals = _OWN_SCHEDULE[field.split(".")[1]]
    own = {
        arm: [rival for rival in rivals if config.method[arm][rival] is not None]
        for arm in arms
        if arm in SCHEDULED
    }
    if not own:
        raise UsageError(
            f"{field} has no effect, because {', '.join(arms)} "
            f"{'has' if len(arms) == 1 else 'have'} no schedule of topology updates; "
            "leave it out, or train a method that has one."
        )
    if all(own.values()):
        arm, found = next(iter(own.items()))
        raise UsageError(
            f"{field} has no effect, because method.{arm}.{found[0]}="
            f"{config.method[arm][found[0]]} is set; set that one instead."
        )
