"""From a method's name in the config to a transformation to train with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax
from experiments import config as config_lib
from experiments import method_factories, networks
from experiments.procedures.around import Around
from experiments.procedures.freezing import Freezing
from experiments.procedures.lottery import Lottery
from experiments.procedures.sieving import Sieving


@dataclasses.dataclass(frozen=True)
class Arm:
    """One method of an experiment, ready to train.

    Attributes:
      name: the method's name in the config.
      tx: the transformation.
      method: its record; None for the dense network, which is trained by the inner
        optimizer alone.
      around: what happens around the steps of training.
      start_from: builds the transformation that starts from given masks.
    """

    name: str
    tx: optax.GradientTransformation
    method: neurrev_jax.Method | None
    around: Around
    start_from: Callable[[Any], optax.GradientTransformation] | None = None

    def with_masks(self, masks: Any) -> "Arm":
        """The same method, starting from these masks."""
        assert self.start_from is not None
        return dataclasses.replace(self, tx=self.start_from(masks))

    @property
    def plan(self) -> config_lib.Plan:
        """Its durations in steps."""
        return self.around.plan

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
        """Entries per layer that the network computes with; all if it is dense."""
        if self.method is None or self._computes_with_all(opt_state):
            masks = jax.tree.map(lambda _: np.array(True), params)
        else:
            masks = neurrev_jax.get_masks(opt_state)
        return neurrev_jax.summarize(params, masks)

    def _computes_with_all(self, opt_state: Any) -> bool:
        """Whether the masks only say what is trained: the rest is held, and used."""
        assert self.method is not None
        shows = hasattr(opt_state.method_state, "effective_params")
        return self.method.inactive == "hold" and not shows

    def report(self, opt_state: Any) -> dict[str, float]:
        """What the metrics of an epoch say of the method's own state."""
        if self.method is None or self.method.name != "itop":
            return {}
        return {"exploration_rate": float(neurrev_jax.exploration_rate(opt_state))}

    def topology_updates(self, steps: int) -> np.ndarray:
        """Topology updates up to and including each step, int[steps + 1]."""
        fires = np.zeros(steps + 1, np.int32)
        if self.around.lottery is not None:
            rounds = [self.plan.round_of(epoch) for epoch in range(self.plan.epochs)]
            # Pruned after its last step has been made, and measured.
            begins = 1 + self.plan.start_of(1 + np.flatnonzero(np.diff(rounds)))
            fires[begins[begins <= steps]] = 1
        elif self.method is not None:
            at = np.arange(1, steps + 1, dtype=np.int32)
            fires[1:] = jax.jit(jax.vmap(self.method.schedule))(at)
        return np.cumsum(fires)


def learning_rate(config: config_lib.Config, plan: config_lib.Plan) -> optax.Schedule:
    """Linear warm-up per step, then a cosine to the final rate.

    Where epochs become shorter it follows the epochs.

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
        decay_steps=plan.training_epochs * plan.steps_per_epoch,
        end_value=config.final_learning_rate,
    )
    if config.learning_rate_changes == "every_step":
        return lambda step: smooth(plan.at_full_length(step))
    warmup = plan.warmup_steps

    def staircase(step: Any) -> Any:
        # Warm-up may end within an epoch; its peak is not to be missed.
        start = jnp.maximum(plan.epoch_of(step) * plan.steps_per_epoch, warmup)
        step = plan.at_full_length(step)
        return smooth(jnp.where(step < warmup, step, start))

    return staircase


def make_arm(
    config: config_lib.Config, plan: config_lib.Plan, params: Any = None
) -> Arm:
    """Builds the method that ``config.method.name`` names.

    Args:
      config: a validated config.
      plan: its durations in steps.
      params: shapes of the network's parameters; None will do for methods that do
        not remove channels.

    Returns:
      The arm.

    Raises:
      ValueError: from the library, for options a method does not accept.
    """
    inner = optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_decayed(config)),
        optax.sgd(learning_rate(config, plan), momentum=config.momentum),
    )
    name = config.method.name
    procedures = _make_around(config, plan, inner)
    if name == "dense":
        return Arm(name, inner, None, procedures)
    method = method_factories.make_method(config, plan, name, params)

    def start_from(masks: Any) -> optax.GradientTransformation:
        return neurrev_jax.sparse_transform(
            inner,
            method,
            sparsity=config.sparsity,
            distribution=config.distribution,
            masks=masks,
            # The library folds in the step; the offset keeps the masks independent of
            # the keys that initialize the network and order the data.
            key=jax.random.fold_in(jax.random.key(config.seed), 2),
        )

    return Arm(name, start_from(None), method, procedures, start_from)


def _make_around(
    config: config_lib.Config,
    plan: config_lib.Plan,
    inner: optax.GradientTransformation,
) -> Around:
    """The procedures that the config asks for, of the method it names."""
    name, multiplier = config.method.name, config.training_multiplier
    rounds = None
    if name == "lth":
        rewind_step = plan.start_of(plan.rewind_epochs)
        rounds = Lottery(inner, *config_lib.lottery_rounds(config), rewind_step)
    layers, examples = None, None
    if name == "spfde":
        own = config.method.spfde
        if own.freeze_from_fraction < 1:
            layers = Freezing(
                blocks=networks.count_blocks(config.model),
                first_epoch=round(own.freeze_from_fraction * plan.epochs),
                epochs=plan.epochs,
            )
        if own.data_fraction < 1:
            n = plan.train_examples
            active = config_lib.active_examples(config, n)
            examples = Sieving(
                examples=n,
                active=active,
                every_epochs=max(1, round(own.sieve_every_epochs * multiplier)),
                exchanged=min(round(own.exchange_fraction * n), n - active),
            )
    if plan.shorter is not None:
        examples = Sieving(
            examples=plan.train_examples,
            active=plan.train_examples,
            removal_epoch=plan.shorter[0],
            removed=config.removal.easy_examples,
        )
    return Around(plan, rounds, layers, examples)


def _decayed(config: config_lib.Config) -> Callable[[Any], Any] | None:
    """Which parameters the optimizer decays, a function of them; None: all."""
    spares_norms = config.weight_decay_on == "all_but_norm"
    by_method = method_factories.decays_what_it_rewires(config, config.method.name)
    if not (spares_norms or by_method):
        return None

    def decayed(params: Any) -> Any:
        chosen = jax.tree.map(lambda _: True, params)
        if spares_norms:
            chosen = _is_not_of_a_norm(params)
        if by_method:
            dense = _is_dense(config, params)
            chosen = jax.tree.map(lambda a, b: a and b, chosen, dense)
        return chosen

    return decayed


def _is_dense(config: config_lib.Config, params: Any) -> Any:
    """True for every parameter that no method rewires, a tree like the parameters."""
    masks = jax.eval_shape(
        lambda p: neurrev_jax.random_masks(
            p, config.sparsity, distribution=config.distribution
        ),
        params,
    )
    return jax.tree.map(lambda mask: mask.ndim == 0, masks)


def _is_not_of_a_norm(params: Any) -> Any:
    """True for every parameter outside the batch norms, a tree like the parameters."""

    def outside(path: tuple[Any, ...], leaf: Any) -> bool:
        del leaf
        return not any("norm" in str(entry) for entry in path)

    return jax.tree_util.tree_map_with_path(outside, params)
