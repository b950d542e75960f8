"""Dynamic sparse training in JAX: masks are pytrees, methods Optax transformations.

>>> import jax.numpy as jnp, neurrev_jax, optax
>>> tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=0.9)
>>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
>>> opt_state = tx.init(params)
>>> params = neurrev_jax.sparsify(params, opt_state)
>>> int(params["kernel"].sum())
20
"""

from neurrev_jax._src.base import (
    Card,
    Context,
    Cost,
    EmptyState,
    Method,
    Rewired,
    SparseState,
    Targets,
)
from neurrev_jax._src.channels import ChannelAxis, ChannelGroup, channel_group
from neurrev_jax._src.distributions import er, erk, uniform
from neurrev_jax._src.dormant import (
    ActivationStats,
    DormantRates,
    all_reduce_activations,
    dormant,
    dormant_rate,
    init_activation_stats,
    observe_activations,
)
from neurrev_jax._src.masks import (
    LayerSummary,
    Summary,
    apply_masks,
    density,
    get_masks,
    pack_masks,
    summarize,
    unpack_masks,
)
from neurrev_jax._src.methods.ac_dc import ac_dc
from neurrev_jax._src.methods.chase import ChaseState, chase
from neurrev_jax._src.methods.deep_r import deep_r
from neurrev_jax._src.methods.dsr import dsr
from neurrev_jax._src.methods.gradual_magnitude import gradual_magnitude
from neurrev_jax._src.methods.granet import granet
from neurrev_jax._src.methods.itop import exploration_rate, itop
from neurrev_jax._src.methods.mest import mest
from neurrev_jax._src.methods.neurrev import NeurRevState, neurrev
from neurrev_jax._src.methods.powerprop import powerprop
from neurrev_jax._src.methods.rigl import rigl
from neurrev_jax._src.methods.set import set_
from neurrev_jax._src.methods.snfs import snfs
from neurrev_jax._src.methods.static import static
from neurrev_jax._src.methods.top_kast import top_kast
from neurrev_jax._src.one_shot.fish_masks import fish_masks
from neurrev_jax._src.one_shot.grasp_masks import class_balanced_indices, grasp_masks
from neurrev_jax._src.one_shot.magnitude_masks import magnitude_masks
from neurrev_jax._src.one_shot.random_masks import random_masks
from neurrev_jax._src.one_shot.snip_masks import snip_masks
from neurrev_jax._src.one_shot.synflow_masks import synflow_masks
from neurrev_jax._src.ratios import constant, cosine, cubic, piecewise
from neurrev_jax._src.schedules import periodic, phases, staged
from neurrev_jax._src.selection import apportion, select, select_global
from neurrev_jax._src.topology import awake, grow, prune
from neurrev_jax._src.transform import sparse_transform
from neurrev_jax._src.views import effective_params, gradient_masks, sparsify

__version__ = "0.1.0"

__all__ = [
    "ActivationStats",
    "Card",
    "ChannelAxis",
    "ChannelGroup",
    "ChaseState",
    "Context",
    "Cost",
    "DormantRates",
    "EmptyState",
    "LayerSummary",
    "Method",
    "NeurRevState",
    "Rewired",
    "SparseState",
    "Summary",
    "Targets",
    "ac_dc",
    "all_reduce_activations",
    "apply_masks",
    "apportion",
    "awake",
    "channel_group",
    "chase",
    "class_balanced_indices",
    "constant",
    "cosine",
    "cubic",
    "deep_r",
    "density",
    "dormant",
    "dormant_rate",
    "dsr",
    "effective_params",
    "er",
    "erk",
    "exploration_rate",
    "fish_masks",
    "get_masks",
    "gradient_masks",
    "gradual_magnitude",
    "granet",
    "grasp_masks",
    "grow",
    "init_activation_stats",
    "itop",
    "magnitude_masks",
    "mest",
    "neurrev",
    "observe_activations",
    "pack_masks",
    "periodic",
    "phases",
    "piecewise",
    "powerprop",
    "prune",
    "random_masks",
    "rigl",
    "select",
    "select_global",
    "set_",
    "snfs",
    "snip_masks",
    "sparse_transform",
    "sparsify",
    "staged",
    "static",
    "summarize",
    "synflow_masks",
    "top_kast",
    "uniform",
    "unpack_masks",
]
