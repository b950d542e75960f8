"""The pure train step, and the functions compiled around it.

Everything here runs inside `jax.pmap` over an axis named `AXIS`, on one device as
on many. Shape letters: D devices, T steps of an epoch, B examples of a batch on one
device, K classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

import neurrev_jax
from experiments.methods import Arm
from experiments.training import data as data_lib
from experiments.training.state import AXIS, TrainState
from neurrev_jax import models


class StepMetrics(NamedTuple):
    """One step's metrics over all devices.

    Attributes:
      loss: mean cross-entropy, float32[].
      correct: correctly classified examples, int32[].
    """

    loss: jax.Array
    correct: jax.Array


class EvalSums(NamedTuple):
    """Sums over a whole split, each example counted once.

    Attributes:
      loss: summed cross-entropy, float32[].
      correct: correctly classified examples, int32[].
      count: examples, int32[].
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array


def train_step(
    model: nn.Module,
    arm: Arm,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step on one batch.

    Gradients and batch statistics are averaged over the replicas before the
    sparse transformation sees them, so every device ends with identical masks.

    Args:
      model: the network.
      arm: the method.
      state: the state of this replica.
      images: [B, H, W, C].
      labels: [B].

    Returns:
      (new state, metrics over all replicas).
    """

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        variables = {
            "params": arm.effective_params(params, state.opt_state),
            "batch_stats": state.batch_stats,
        }
        logits, new = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, new["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    grads, batch_stats, loss = lax.pmean((grads, batch_stats, loss), AXIS)
    updates, opt_state = arm.tx.update(grads, state.opt_state, state.params)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=state.key,
    )
    return new_state, StepMetrics(loss, lax.psum(correct, AXIS))


def make_train_epoch(
    model: nn.Module, arm: Arm, *, steps: int, batch_size: int, shift_pixels: int
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """Compiles a pass over data that lies on the devices into one call.

    The order of the examples comes from the run's key folded with the epoch; it is
    drawn for the whole batch and then divided, so it is the same for any number of
    devices. What does not fill a batch is left out, in every epoch something else.

    Args:
      model: the network.
      arm: the method.
      steps: T.
      batch_size: examples of a batch over all devices, a multiple of D.
      shift_pixels: see `data.random_shift`.

    Returns:
      ``epoch(state, split, number) -> (state, StepMetrics of [D, T])``, with state
      and split replicated; the state passed in is given up.
    """
    per_device = batch_size // jax.device_count()

    def train_epoch(
        state: TrainState, split: data_lib.Split, number: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
        order_key, shift_key = jax.random.split(key)
        order = jax.random.permutation(order_key, split.labels.shape[0])
        order = order[: steps * batch_size].reshape(steps, batch_size)
        start = lax.axis_index(AXIS) * per_device

        def mine(batch: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(batch, start, per_device)

        def body(state: TrainState, inputs: Any) -> tuple[TrainState, StepMetrics]:
            step, order = inputs
            keys = jax.random.split(jax.random.fold_in(shift_key, step), batch_size)
            images = jnp.take(split.images, mine(order), axis=0)
            images = data_lib.random_shift(mine(keys), images, shift_pixels)
            labels = jnp.take(split.labels, mine(order), axis=0)
            return train_step(model, arm, state, images, labels)

        return lax.scan(body, state, (jnp.arange(steps), order))

    return jax.pmap(train_epoch, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


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
    model: nn.Module,
) -> Callable[[Any, data_lib.Batches], EvalSums]:
    """Compiles evaluation, the same for all methods.

    Args:
      model: the network.

    Returns:
      ``evaluate(variables, batches) -> EvalSums of [D]`` (equal on all devices).
    """

    def evaluate(variables: Any, batches: data_lib.Batches) -> EvalSums:
        def body(sums: EvalSums, batch: data_lib.Batches) -> tuple[EvalSums, None]:
            logits: Any = model.apply(variables, batch.images, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, batch.labels
            )
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


def make_observe(
    model: nn.Module,
) -> Callable[[Any, data_lib.Batches], neurrev_jax.ActivationStats]:
    """Compiles the statistics of every activation over a set of examples.

    Args:
      model: the network.

    Returns:
      ``observe(variables, batches) -> ActivationStats`` with a leading D axis
      (equal on all devices).
    """

    def activations(variables: Any, images: jax.Array) -> Any:
        _, seen = model.apply(
            variables, images, train=False, mutable=[models.ACTIVATIONS]
        )
        return seen[models.ACTIVATIONS]

    def observe(
        variables: Any, batches: data_lib.Batches
    ) -> neurrev_jax.ActivationStats:
        def body(stats: Any, batch: data_lib.Batches) -> tuple[Any, None]:
            maps = activations(variables, batch.images)
            return neurrev_jax.observe_activations(stats, maps, batch.include), None

        shapes = jax.eval_shape(activations, variables, batches.images[0])
        stats, _ = lax.scan(body, neurrev_jax.init_activation_stats(shapes), batches)
        return neurrev_jax.all_reduce_activations(stats, AXIS)

    return jax.pmap(observe, axis_name=AXIS)
