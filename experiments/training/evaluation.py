"""Accuracy and dormant neurons, over every example exactly once.

All functions are compiled over the local devices and shared by the methods of an
experiment. Shape letters: D local devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

import neurrev_jax
from experiments.data.augment import normalize
from experiments.data.base import DataInfo
from experiments.data.batches import Batches
from experiments.methods import Arm
from experiments.training.state import AXIS, TrainState
from experiments.training.steps import cross_entropy
from neurrev_jax import models


class EvalSums(NamedTuple):
    """Sums over examples, each counted once.

    Attributes:
      loss: summed cross-entropy, float32[].
      correct: correctly classified examples, int32[].
      count: examples, int32[].
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


class Observer(NamedTuple):
    """Statistics of every activation, in three steps.

    Attributes:
      start: ``start(variables, batches) -> stats`` of nothing; the batches give the
        shapes.
      add: ``add(variables, stats, batches) -> stats``.
      finish: ``finish(stats) -> stats`` over the replicas, equal on all of them.
    """

    start: Callable[[Any, Batches], Any]
    add: Callable[[Any, Any, Batches], Any]
    finish: Callable[[Any], neurrev_jax.ActivationStats]


def make_forward_variables(arm: Arm) -> Callable[[TrainState], Any]:
    """Compiles the step from a state to the variables of a forward pass.

    Args:
      arm: the method.

    Returns:
      ``variables(state) -> {"params", "batch_stats"}``, replicated as the state is.
    """

    def variables(state: TrainState) -> Any:
        return {
            "params": arm.effective_params(state.params, state.opt_state),
            "batch_stats": state.batch_stats,
        }

    return jax.pmap(variables, axis_name=AXIS)


def make_evaluate(
    model: nn.Module, info: DataInfo
) -> Callable[[Any, Batches], EvalSums]:
    """Compiles evaluation.

    Args:
      model: the network.
      info: facts about the data.

    Returns:
      ``evaluate(variables, batches) -> EvalSums of [D]`` (equal on all devices).
    """

    def evaluate(variables: Any, batches: Batches) -> EvalSums:
        def body(sums: EvalSums, batch: Batches) -> tuple[EvalSums, None]:
            images = normalize(info, batch.images)
            logits: Any = model.apply(variables, images, train=False)
            losses = cross_entropy(logits, batch.labels)
            hits = (jnp.argmax(logits, axis=-1) == batch.labels) & batch.include
            return EvalSums(
                sums.loss + jnp.sum(jnp.where(batch.include, losses, 0.0)),
                sums.correct + jnp.sum(hits, dtype=jnp.int32),
                sums.count + jnp.sum(batch.include, dtype=jnp.int32),
            ), None

        zero = EvalSums(jnp.float32(0), jnp.int32(0), jnp.int32(0))
        sums, _ = lax.scan(body, zero, batches)
        return lax.psum(sums, AXIS)

    return jax.pmap(evaluate, axis_name=AXIS)


def make_observer(model: nn.Module, info: DataInfo) -> Observer:
    """Compiles the measurement of activations.

    Args:
      model: the network.
      info: facts about the data.

    Returns:
      The three steps.
    """

    def activations(variables: Any, images: jax.Array) -> Any:
        _, seen = model.apply(
            variables, normalize(info, images), mutable=[models.ACTIVATIONS]
        )
        return seen[models.ACTIVATIONS]

    def start(variables: Any, batches: Batches) -> neurrev_jax.ActivationStats:
        shapes = jax.eval_shape(activations, variables, batches.images[0])
        return neurrev_jax.init_activation_stats(shapes)

    def add(variables: Any, stats: Any, batches: Batches) -> Any:
        def body(stats: Any, batch: Batches) -> tuple[Any, None]:
            maps = activations(variables, batch.images)
            return neurrev_jax.observe_activations(stats, maps, batch.include), None

        return lax.scan(body, stats, batches)[0]

    def finish(stats: Any) -> neurrev_jax.ActivationStats:
        return neurrev_jax.all_reduce_activations(stats, AXIS)

    return Observer(
        start=jax.pmap(start, axis_name=AXIS),
        add=jax.pmap(add, axis_name=AXIS, donate_argnums=1),
        finish=jax.pmap(finish, axis_name=AXIS),
    )
