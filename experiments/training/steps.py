"""The pure train step, and the functions compiled around it.

Everything here runs inside `jax.pmap` over an axis named `AXIS`, on one device as
on many, in one process as in many. Shape letters: D local devices, T steps of a
call, A parts of an accumulated batch, B examples of a batch on one device, K
classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from experiments.config import Plan
from experiments.data.augment import augment, normalize
from experiments.data.base import DataInfo, Split
from experiments.methods import Arm
from experiments.procedures import freezing, sieving
from experiments.procedures.around import Memory
from experiments.training.state import AXIS, Progress, Sums, TrainState, no_sums


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a train step is made of, apart from state and data.

    Attributes:
      model: the network.
      arm: the method.
      info: facts about the data.
      accumulation_steps: A.
      label_smoothing: probability mass spread over all classes, in [0, 1).
      crop_padding: see `augment`.
      flip: see `augment`.
      log_every_steps: after so many steps the sums of the step log start anew.
      frozen_blocks: so many of the network's first blocks are frozen.
    """

    model: nn.Module
    arm: Arm
    info: DataInfo
    accumulation_steps: int = 1
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    log_every_steps: int = 1
    frozen_blocks: int = 0

    @property
    def plan(self) -> Plan:
        """Durations in steps."""
        return self.arm.around.plan


def train_step(
    recipe: Recipe,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    examples: jax.Array | None = None,
) -> TrainState:
    """One optimizer step on one batch.

    Gradients and batch statistics are averaged over the parts of the batch and over
    the replicas before the sparse transformation sees them, so every device ends
    with identical masks. A part on one device is to batch norm what a whole batch is
    on a replica of its own: A parts on one device and one part on each of A devices
    are the same step, unless batch norm takes its statistics over all devices.

    Nothing is differentiated by frozen parameters, so nothing is propagated back
    through the blocks that hold them.

    Args:
      recipe: network, method and the like.
      state: the state of this replica.
      images: [B, H, W, C] float32, normalized; A divides B.
      labels: [B].
      examples: [B] int32, their numbers in the training set; needed where examples
        are sieved.

    Returns:
      The new state.
    """
    parts, frozen_blocks = recipe.accumulation_steps, recipe.frozen_blocks
    frozen = freezing.is_frozen(state.params, frozen_blocks)
    frozen_stats = freezing.is_frozen(state.batch_stats, frozen_blocks)
    model = recipe.model
    if frozen_blocks:
        model = model.clone(frozen_blocks=frozen_blocks)

    def loss_fn(trained: Any, part: tuple[jax.Array, jax.Array]) -> Any:
        images, labels = part
        params = freezing.merge(trained, state.params, frozen)
        variables = {
            "params": recipe.arm.effective_params(params, state.opt_state),
            "batch_stats": state.batch_stats,
        }
        logits: Any
        logits, new = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = cross_entropy(logits, labels, recipe.label_smoothing)
        correct = jnp.argmax(logits, axis=-1) == labels
        stats = freezing.unfrozen(new["batch_stats"], frozen_stats)
        return jnp.mean(losses), (correct, stats)

    def of_part(part: tuple[jax.Array, jax.Array]) -> Any:
        trained = freezing.unfrozen(state.params, frozen)
        value, grads = jax.value_and_grad(loss_fn, has_aux=True)(trained, part)
        loss, (correct, batch_stats) = value
        return (loss, batch_stats, grads), correct

    if parts == 1:
        means, correct = of_part((images, labels))
    else:
        cut = jax.tree.map(
            lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]),
            (images, labels),
        )
        like, _ = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], cut))

        def add_part(sums: Any, part: tuple[jax.Array, jax.Array]) -> Any:
            of_this, correct = of_part(part)
            return jax.tree.map(jnp.add, sums, of_this), correct

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        sums, correct = lax.scan(add_part, zeros, cut)
        means, correct = jax.tree.map(lambda x: x / parts, sums), correct.reshape(-1)
    loss, batch_stats, grads = lax.pmean(means, AXIS)
    grads = freezing.merge(grads, jax.tree.map(jnp.zeros_like, state.params), frozen)
    options = {"frozen": frozen} if frozen_blocks else {}
    updates, opt_state = recipe.arm.tx.update(
        grads, state.opt_state, state.params, **options
    )
    hits = lax.psum(jnp.sum(correct, dtype=jnp.int32), AXIS)
    return TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=freezing.merge(batch_stats, state.batch_stats, frozen_stats),
        opt_state=opt_state,
        key=state.key,
        progress=_count(recipe, state, Sums(loss, hits)),
        memory=_remember(recipe, state.memory, examples, correct),
    )


def _remember(
    recipe: Recipe, memory: Memory, examples: jax.Array | None, correct: jax.Array
) -> Memory:
    """Notes how the examples of all devices were classified, where that matters."""
    if recipe.arm.around.sieving is None:
        return memory
    seen = lax.all_gather((examples, correct), AXIS, tiled=True)
    return memory._replace(sieve=sieving.observe(memory.sieve, *seen))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of each example, in float32.

    Args:
      logits: [B, K], any floating type.
      labels: [B].
      smoothing: probability mass spread evenly over all classes.

    Returns:
      [B] float32.
    """
    logits = logits.astype(jnp.float32)
    hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return hard
    spread = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * hard + smoothing * spread


def _count(recipe: Recipe, state: TrainState, new: Sums) -> Progress:
    """Adds one step to what is reported."""
    old = state.progress

    epoch_start = recipe.plan.start_of(recipe.plan.epoch_of(state.step))

    def add(sums: Sums, is_first: jax.Array) -> Sums:
        kept = jax.tree.map(lambda z, x: jnp.where(is_first, z, x), no_sums(), sums)
        return jax.tree.map(jnp.add, kept, new)

    is_bad = ~jnp.isfinite(new.loss) & (old.bad_step == 0)
    return Progress(
        epoch=add(old.epoch, state.step == epoch_start),
        window=add(old.window, state.step % recipe.log_every_steps == 0),
        bad_step=jnp.where(is_bad, state.step + 1, old.bad_step),
    )


def make_train_on_memory(recipe: Recipe, batch_size: int) -> Callable[..., TrainState]:
    """Compiles training on data that lie on the devices: many steps are one call.

    The order of the examples comes from the run's key folded with the epoch; it is
    drawn for the whole batch and then divided, so it is the same for any number of
    devices. What does not fill a batch is left out, in every epoch something else.

    Args:
      recipe: network, method and the like.
      batch_size: examples of a batch over all devices, a multiple of their number
        and of A times it.

    Returns:
      ``train(state, split, steps) -> state`` with state and split replicated; the
      state passed in is given up. The steps must not go past the end of an epoch;
      how an epoch is divided into calls makes no difference to the result, and any
      number of steps is the same compiled program.
    """
    per_device = batch_size // jax.device_count()
    plan, length = recipe.plan, recipe.plan.steps_per_epoch

    def train(state: TrainState, split: Split, steps: jax.Array) -> TrainState:
        epoch = plan.epoch_of(state.step)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), epoch)
        order_key, augment_key = jax.random.split(key)
        if recipe.arm.around.sieving is None:
            order = jax.random.permutation(order_key, split.labels.shape[0])
        else:
            order = sieving.shuffle(state.memory.sieve, order_key)
        order = order[: length * batch_size].reshape(length, batch_size)
        start = lax.axis_index(AXIS) * per_device

        def mine(batch: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(batch, start, per_device)

        def body(_: jax.Array, state: TrainState) -> TrainState:
            step = state.step - plan.start_of(epoch)
            keys = jax.random.split(jax.random.fold_in(augment_key, step), batch_size)
            chosen = mine(order[step])
            images = augment(
                mine(keys),
                jnp.take(split.images, chosen, axis=0),
                padding=recipe.crop_padding,
                flip=recipe.flip,
            )
            labels = jnp.take(split.labels, chosen, axis=0)
            images = normalize(recipe.info, images)
            return train_step(recipe, state, images, labels, chosen)

        return lax.fori_loop(0, steps, body, state)

    return jax.pmap(train, axis_name=AXIS, in_axes=(0, 0, None), donate_argnums=0)


def make_train_on_batch(
    recipe: Recipe,
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Compiles one step on a batch that comes from the host.

    Args:
      recipe: network, method and the like.

    Returns:
      ``train(state, images, labels) -> (state, step)`` with images [D, B, H, W, C]
      uint8 and labels [D, B]; the state passed in is given up. The call returns
      before the step is done; the number of the step, [D], is there when it is.
    """

    def train(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        state = train_step(recipe, state, normalize(recipe.info, images), labels)
        return state, state.step

    return jax.pmap(train, axis_name=AXIS, donate_argnums=0)
