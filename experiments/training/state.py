"""What training carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.methods import Arm
from experiments.procedures.around import Memory

AXIS = "batch"
"""Name of the axis that training is mapped over: the replicas."""


class Sums(NamedTuple):
    """Sums over the steps of a stretch of training so far.

    Attributes:
      loss: summed mean losses, float32[].
      correct: correctly classified examples, int32[].
    """

    loss: Any
    correct: Any


class Progress(NamedTuple):
    """What is reported of training, kept with the state so that no stop loses it.

    Attributes:
      epoch: sums since the epoch began.
      window: sums since the last line of the step log.
      bad_step: the first step whose loss was not finite, int32[]; 0 for none.
    """

    epoch: Sums
    window: Sums
    bad_step: Any


class TrainState(NamedTuple):
    """Everything a run needs to continue; arrays only.

    Attributes:
      step: steps so far, int32[].
      params: parameters, a nested dict.
      batch_stats: running statistics of batch norm, a nested dict.
      opt_state: optimizer state, with the masks inside.
      key: threefry key data, uint32[2]; constant, folded with the epoch.
      progress: losses and accuracies so far.
      memory: what the procedures around training remember.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    key: Any
    progress: Progress
    memory: Memory = Memory()


def no_sums() -> Sums:
    """Sums over no step."""
    return Sums(jnp.float32(0), jnp.int32(0))


def init_variables(model: nn.Module, images: jax.Array, seed: int) -> Any:
    """The network before training; all methods of an experiment start from it.

    Args:
      model: the network.
      images: any batch of the right shape.
      seed: the run's seed.

    Returns:
      Its variables.
    """
    return model.init(jax.random.fold_in(jax.random.key(seed), 0), images)


def init_state(model: nn.Module, arm: Arm, images: jax.Array, seed: int) -> TrainState:
    """The state before the first step.

    Args:
      model: the network.
      arm: the method.
      images: any batch of the right shape.
      seed: the run's seed.

    Returns:
      The state, not replicated.
    """
    run_key = jax.random.key(seed)
    variables = init_variables(model, images, seed)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    key = jax.random.fold_in(run_key, 1)
    opt_state, memory = arm.around.start(params, batch_stats, arm.tx.init(params), key)
    return TrainState(
        step=jnp.int32(0),
        params=arm.sparsify(params, opt_state),
        batch_stats=batch_stats,
        opt_state=opt_state,
        key=jax.random.key_data(key),
        progress=Progress(no_sums(), no_sums(), jnp.int32(0)),
        memory=memory,
    )


def compile_init(
    model: nn.Module, arm: Arm, images: jax.Array, seed: int
) -> TrainState:
    """`init_state`, compiled in a hurry.

    Random bits take XLA a second per kernel to compile with optimization, which is
    far more than drawing them without.

    Args:
      model: the network.
      arm: the method.
      images: any batch of the right shape.
      seed: the run's seed.

    Returns:
      The state as NumPy arrays.
    """
    init = jax.jit(
        lambda: init_state(model, arm, images, seed),
        compiler_options={
            "xla_backend_optimization_level": 0,
            # There are no arguments: all of it would be computed at compile time.
            "xla_disable_hlo_passes": "constant_folding",
        },
    )
    return jax.tree.map(np.asarray, init())


def replicate(tree: Any) -> Any:
    """Puts a copy of every array on each local device, along a new first axis."""
    n = jax.local_device_count()

    def stacked(x: Any) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(x), (n, *np.shape(x)))

    return distribute(jax.tree.map(stacked, tree))


def distribute(tree: Any) -> Any:
    """Puts the parts of every array, along its first axis, on the local devices."""
    # Under the axis name of training: another name would be another placement, and
    # the first step would be compiled a second time for its own outputs.
    return jax.pmap(lambda x: x, axis_name=AXIS)(tree)


def unreplicate(tree: Any) -> Any:
    """The copy of the first local device, as NumPy arrays."""

    def first(x: Any) -> np.ndarray:
        # Indexing would gather the array from all devices first.
        return np.asarray(x.addressable_shards[0].data)[0]

    return jax.tree.map(first, tree)
