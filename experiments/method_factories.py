"""From a method's section in the config to its record."""

from collections.abc import Callable
from typing import Any

import neurrev_jax
from experiments import config as config_lib
from experiments import method_options
from neurrev_jax import models

_Options = dict[str, Any]


def make_method(
    config: config_lib.Config, plan: config_lib.Plan, name: str, params: Any
) -> neurrev_jax.Method:
    """Builds the record of a method.

    Args:
      config: a validated config.
      plan: its durations in steps.
      name: a sparse method.
      params: shapes of the network's parameters; None will do for methods that do
        not remove channels.

    Returns:
      The record.

    Raises:
      ValueError: from the library, for options a method does not accept.
    """
    if name in method_options.ONE_SHOT or name == "lth":
        # What has been drawn, or is pruned between the rounds, is fixed within them.
        held = name == "fish" and config.method.fish.mode == "update"
        return neurrev_jax.static(inactive="hold" if held else "zero")
    options = config.method[name].to_dict()
    if name == "static":
        return neurrev_jax.static(**options)
    if name == "spfde":
        return make_method(config, plan, options["host"], params)
    if name == "powerprop":
        inside = options.pop("host")
        on_weights = options.pop("weight_decay_on") == "weights"
        if on_weights and not decays_what_it_rewires(config, inside):
            options["weight_decay"] = config.weight_decay
        host = make_method(config, plan, inside, params)
        return neurrev_jax.powerprop(host, **options)
    if name == "ac_dc":
        return _ac_dc(options, plan)
    updates = config_lib.update_plan(config, plan, name)
    for field in ("update_interval_epochs", "update_interval_steps", "until_fraction"):
        del options[field]
    options["schedule"] = _schedule(updates)
    table = options.pop("update_ratio_at", None)
    if table is not None and options["update_ratio"] is None:
        options["update_ratio"] = config_lib.ratio_at(table, config.sparsity)
    if name == "top_kast" and options["penalty"] is None:
        options["penalty"] = config.weight_decay
    if "ratio_schedule" in options:
        _schedule_ratio(options, plan, updates, keep_final=name == "chase")
    adapt = _ADAPT.get(name)
    if adapt is not None:
        adapt(options, plan, updates)
    if name == "chase" and options["channel_sparsity"]:
        options["groups"] = models.channel_groups(params)
    return _FACTORIES[name](**options)


def decays_what_it_rewires(config: config_lib.Config, name: str) -> bool:
    """Whether a method has the weight decay of rewirable leaves, not the optimizer.

    Top-KAST's penalty takes its place; Powerpropagation has it act on the weights, of
    which the optimizer sees the roots alone.

    Args:
      config: a validated config.
      name: a method.

    Returns:
      Whether it or the method that it goes around does.
    """
    used = config_lib.methods_of(config, name)
    on_weights = config.method.powerprop.weight_decay_on == "weights"
    return "top_kast" in used or ("powerprop" in used and on_weights)


_FACTORIES: dict[str, Callable[..., neurrev_jax.Method]] = {
    "neurrev": neurrev_jax.neurrev,
    "set": neurrev_jax.set_,
    "rigl": neurrev_jax.rigl,
    "itop": neurrev_jax.itop,
    "mest": neurrev_jax.mest,
    "snfs": neurrev_jax.snfs,
    "deep_r": neurrev_jax.deep_r,
    "dsr": neurrev_jax.dsr,
    "top_kast": neurrev_jax.top_kast,
    "granet": neurrev_jax.granet,
    "gradual_magnitude": neurrev_jax.gradual_magnitude,
    "chase": neurrev_jax.chase,
}


def _schedule(updates: config_lib.UpdatePlan) -> Any:
    if not updates.later:
        return neurrev_jax.periodic(updates.interval, updates.until, updates.start)
    boundaries, every = zip(*updates.later, strict=True)
    return neurrev_jax.staged(
        (updates.interval, *every), boundaries, updates.until, updates.start
    )


def _schedule_ratio(
    options: _Options,
    plan: config_lib.Plan,
    updates: config_lib.UpdatePlan,
    keep_final: bool,
) -> None:
    """Makes the update ratio what ``ratio_schedule`` says, over all updates."""
    ratio, until = options["update_ratio"], max(updates.until, 1)
    schedule = options.pop("ratio_schedule")
    # What chase calls so is the ratio of another stage of its training.
    final = 0.0 if keep_final else options.pop("final_ratio", 0.0)
    if schedule == "cosine":
        options["update_ratio"] = neurrev_jax.cosine(ratio, until, final)
    elif schedule == "stages":
        last = max(options["schedule"].last_update(), 2)
        options["update_ratio"] = neurrev_jax.piecewise(
            [ratio, ratio / 2, 0.0], [max(1, plan.share(0.75, last)), last]
        )
    elif schedule != "constant":
        raise ValueError(
            f"ratio_schedule={schedule!r} is unknown; choose 'constant', 'cosine' or "
            "'stages'."
        )


def _steps(fractions: Any, plan: config_lib.Plan) -> list[int]:
    """Fractions of training in steps, increasing from 1 on."""
    steps = [plan.share(fraction, plan.total_steps) for fraction in fractions]
    for i, step in enumerate(steps):
        steps[i] = max(step, 1, *(earlier + 1 for earlier in steps[:i]))
    return steps


def _ac_dc(options: _Options, plan: config_lib.Plan) -> neurrev_jax.Method:
    changes = neurrev_jax.phases(_steps(options.pop("changes_at"), plan))
    return neurrev_jax.ac_dc(changes, calls=plan.total_steps, **options)


def _deep_r(
    options: _Options, plan: config_lib.Plan, updates: config_lib.UpdatePlan
) -> None:
    del updates
    boundaries = _steps(options.pop("temperatures_from"), plan)
    options["temperature"] = neurrev_jax.piecewise(
        options.pop("temperatures"), boundaries
    )


def _dsr(
    options: _Options, plan: config_lib.Plan, updates: config_lib.UpdatePlan
) -> None:
    doubles_at = _steps(options.pop("interval_doubles_at"), plan)
    if doubles_at:
        every = [updates.interval * 2**i for i in range(len(doubles_at) + 1)]
        options["schedule"] = neurrev_jax.staged(
            every, doubles_at, updates.until, updates.start
        )


def _granet(
    options: _Options, plan: config_lib.Plan, updates: config_lib.UpdatePlan
) -> None:
    [until] = _steps([options.pop("sparse_from_fraction")], plan)
    options["window"] = (updates.start, max(until, updates.start + 1))


def _gradual(
    options: _Options, plan: config_lib.Plan, updates: config_lib.UpdatePlan
) -> None:
    del plan
    last = options["schedule"].last_update()
    options["window"] = (updates.start, max(last, updates.start + 1))


def _chase(
    options: _Options, plan: config_lib.Plan, updates: config_lib.UpdatePlan
) -> None:
    [soft] = _steps([options.pop("soft_until_fraction")], plan)
    [channels] = _steps([options.pop("channel_until_fraction")], plan)
    options["soft_until"] = soft
    options["channel_window"] = (updates.start, max(channels, updates.start + 1))


_ADAPT: dict[
    str, Callable[[_Options, config_lib.Plan, config_lib.UpdatePlan], None]
] = {
    "deep_r": _deep_r,
    "dsr": _dsr,
    "granet": _granet,
    "gradual_magnitude": _gradual,
    "chase": _chase,
}
