"""From a method's name in the config to a transformation to train with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax
from experiments import config as config_lib

_FACTORIES = {
    "neurrev": neurrev_jax.neurrev,
    "set": neurrev_jax.set_,
    "rigl": neurrev_jax.rigl,
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method of an experiment, ready to train.

    Attributes:
      name: the method's name in the config.
      tx: the transformation.
      method: its record; None for the dense network, which is trained by the inner
        optimizer alone.
    """

    name: str
    tx: optax.GradientTransformation
    method: neurrev_jax.Method | None

    def sparsify(self, params: Any, opt_state: Any) -> Any:
        """Fresh parameters, masked from the first forward pass."""
        if self.method is None:
            return params
        return neurrev_jax.sparsify(params, opt_state)

    def effective_params(self, params: Any, opt_state: Any) -> Any:
        """The parameters of every forward pass."""
        if self.method is None:
            return params
        return neurrev_jax.effective_params(params, opt_state)

    def summarize(self, params: Any, opt_state: Any) -> neurrev_jax.Summary:
        """Active entries per layer; all of them for the dense network."""
        if self.method is None:
            masks = jax.tree.map(lambda _: np.array(True), params)
        else:
            masks = neurrev_jax.get_masks(opt_state)
        return neurrev_jax.summarize(params, masks)

    def topology_updates(self, steps: int) -> np.ndarray:
        """Topology updates up to and including each step, int[steps + 1]."""
        fires = np.zeros(steps + 1, np.int32)
        if self.method is not None:
            at = np.arange(1, steps + 1, dtype=np.int32)
            fires[1:] = jax.jit(jax.vmap(self.method.schedule))(at)
        return np.cumsum(fires)


def learning_rate(config: config_lib.Config, plan: config_lib.Plan) -> optax.Schedule:
    """Linear warm-up per step, then a cosine to the final rate.

    Args:
      config: a validated config; with ``learning_rate_changes="every_epoch"`` the
        cosine is a staircase of one step per epoch.
      plan: its durations in steps.

    Returns:
      The rate of each step, counted from 0.
    """
    smooth = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if plan.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=plan.warmup_steps,
        decay_steps=plan.total_steps,
        end_value=config.final_learning_rate,
    )
    if config.learning_rate_changes == "every_step":
        return smooth
    length, warmup = plan.steps_per_epoch, plan.warmup_steps

    def staircase(step: Any) -> Any:
        # Warm-up may end within an epoch; its peak is not to be missed.
        epoch_start = jnp.maximum(step // length * length, warmup)
        return smooth(jnp.where(step < warmup, step, epoch_start))

    return staircase


def make_arm(config: config_lib.Config, plan: config_lib.Plan) -> Arm:
    """Builds the method that ``config.method.name`` names.

    Args:
      config: a validated config.
      plan: its durations in steps.

    Returns:
      The arm.

    Raises:
      ValueError: from the library, for options a method does not accept.
    """
    decays = None if config.weight_decay_on == "all" else _is_not_of_a_norm
    inner = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.sgd(learning_rate(config, plan), momentum=config.momentum),
    )
    name = config.method.name
    if name == "dense":
        return Arm(name, inner, None)
    method = _make_method(config, plan)
    tx = neurrev_jax.sparse_transform(
        inner,
        method,
        sparsity=config.sparsity,
        distribution=config.distribution,
        # The library folds in the step; the offset keeps the masks independent of
        # the keys that initialize the network and order the data.
        key=jax.random.fold_in(jax.random.key(config.seed), 2),
    )
    return Arm(name, tx, method)


def _is_not_of_a_norm(params: Any) -> Any:
    """True for every parameter outside the batch norms, a tree like the parameters."""

    def outside(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        return not any("norm" in str(entry) for entry in path)

    return jax.tree_util.tree_map_with_path(outside, params)


def _make_method(
    config: config_lib.Config, plan: config_lib.Plan
) -> neurrev_jax.Method:
    name = config.method.name
    options = config.method[name].to_dict()
    if name == "static":
        return neurrev_jax.static(**options)
    for field in ("update_interval_epochs", "update_interval_steps", "until_fraction"):
        del options[field]
    table = options.pop("update_ratio_at", None)
    if options["update_ratio"] is None:
        options["update_ratio"] = config_lib.ratio_at(table, config.sparsity)
    updates = config_lib.update_plan(config, plan, name)
    ratio_schedule = options.pop("ratio_schedule")
    if ratio_schedule == "cosine":
        options["update_ratio"] = neurrev_jax.cosine(
            options["update_ratio"], until=max(updates.until, 1)
        )
    elif ratio_schedule != "constant":
        raise ValueError(
            f"ratio_schedule={ratio_schedule!r} is unknown; choose 'constant' or "
            "'cosine'."
        )
    schedule = neurrev_jax.periodic(
        updates.interval, until=updates.until, start=updates.start
    )
    return _FACTORIES[name](schedule=schedule, **options)
