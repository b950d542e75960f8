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
    Context,
    Cost,
    EmptyState,
    Method,
    Rewired,
    SparseState,
    Targets,
)
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
from neurrev_jax._src.methods.neurrev import NeurRevState, neurrev
from neurrev_jax._src.methods.rigl import rigl
from neurrev_jax._src.methods.set import set_
from neurrev_jax._src.methods.static import static
from neurrev_jax._src.ratios import constant, cosine, cubic, piecewise
from neurrev_jax._src.schedules import periodic
from neurrev_jax._src.selection import apportion, select, select_global
from neurrev_jax._src.topology import awake, grow, prune
from neurrev_jax._src.transform import sparse_transform
from neurrev_jax._src.views import effective_params, gradient_masks, sparsify

__version__ = "0.1.0"

__all__ = [
    "ActivationStats",
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
    "all_reduce_activations",
    "apply_masks",
    "apportion",
    "awake",
    "constant",
    "cosine",
    "cubic",
    "density",
    "dormant",
    "dormant_rate",
    "effective_params",
    "er",
    "erk",
    "get_masks",
    "gradient_masks",
    "grow",
    "init_activation_stats",
    "neurrev",
    "observe_activations",
    "pack_masks",
    "periodic",
    "piecewise",
    "prune",
    "rigl",
    "select",
    "select_global",
    "set_",
    "sparse_transform",
    "sparsify",
    "static",
    "summarize",
    "uniform",
    "unpack_masks",
]
