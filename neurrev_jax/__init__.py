"""Dynamic sparse training in JAX: masks are pytrees, methods Optax transformations.

>>> import jax.numpy as jnp, neurrev_jax, optax
>>> tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=0.9)
>>> params = {"kernel": jnp.ones((20, 10)), "bias": jnp.zeros(10)}
>>> opt_state = tx.init(params)
>>> params = neurrev_jax.sparsify(params, opt_state)
>>> int(params["kernel"].sum())
20
"""

from neurrev_jax._src.base import Context as Context
from neurrev_jax._src.base import Cost as Cost
from neurrev_jax._src.base import EmptyState as EmptyState
from neurrev_jax._src.base import Method as Method
from neurrev_jax._src.base import Rewired as Rewired
from neurrev_jax._src.base import SparseState as SparseState
from neurrev_jax._src.base import Targets as Targets
from neurrev_jax._src.distributions import er as er
from neurrev_jax._src.distributions import erk as erk
from neurrev_jax._src.distributions import uniform as uniform
from neurrev_jax._src.masks import LayerSummary as LayerSummary
from neurrev_jax._src.masks import Summary as Summary
from neurrev_jax._src.masks import apply_masks as apply_masks
from neurrev_jax._src.masks import density as density
from neurrev_jax._src.masks import get_masks as get_masks
from neurrev_jax._src.masks import pack_masks as pack_masks
from neurrev_jax._src.masks import summarize as summarize
from neurrev_jax._src.masks import unpack_masks as unpack_masks
from neurrev_jax._src.methods.neurrev import NeurRevState as NeurRevState
from neurrev_jax._src.methods.neurrev import neurrev as neurrev
from neurrev_jax._src.methods.rigl import rigl as rigl
from neurrev_jax._src.methods.set import set_ as set_
from neurrev_jax._src.methods.static import static as static
from neurrev_jax._src.ratios import constant as constant
from neurrev_jax._src.ratios import cosine as cosine
from neurrev_jax._src.ratios import cubic as cubic
from neurrev_jax._src.ratios import piecewise as piecewise
from neurrev_jax._src.schedules import periodic as periodic
from neurrev_jax._src.selection import apportion as apportion
from neurrev_jax._src.selection import select as select
from neurrev_jax._src.selection import select_global as select_global
from neurrev_jax._src.topology import awake as awake
from neurrev_jax._src.topology import grow as grow
from neurrev_jax._src.topology import prune as prune
from neurrev_jax._src.transform import effective_params as effective_params
from neurrev_jax._src.transform import gradient_masks as gradient_masks
from neurrev_jax._src.transform import sparse_transform as sparse_transform
from neurrev_jax._src.transform import sparsify as sparsify

__version__ = "0.1.0"
