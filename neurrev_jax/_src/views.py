"""What a sparse state says about parameters: to train with, to compute with."""

from typing import Any

import jax

from neurrev_jax._src import base
from neurrev_jax._src import masks as masks_lib


def sparsify(params: base.Params, opt_state: Any) -> base.Params:
    """Prepares fresh parameters for training; once, right after `init`.

    Masks them, so that the first forward pass is already sparse; for a method that
    holds inactive values or reparameterizes, what that method asks for instead.

    Args:
      params: the parameters that `init` was called with.
      opt_state: what it returned (the sparse state may be nested in it).

    Returns:
      The parameters to train with.

    Raises:
      ValueError: if the state does not belong to such parameters.
    """
    return _by_state(params, opt_state, "sparsify", masks_lib.apply_masks)


def effective_params(params: base.Params, opt_state: Any) -> base.Params:
    """The weights the network computes with: for forward passes, evaluation, export.

    The identity for most methods. Differentiable: gradients pass straight through a
    mask, and a reparameterization has its true derivative.

    Args:
      params: parameter tree.
      opt_state: optimizer state (the sparse state may be nested in it).

    Returns:
      A tree like `params`.
    """
    return _by_state(params, opt_state, "effective_params", lambda p, masks: p)


def gradient_masks(opt_state: Any) -> base.Masks:
    """Which entries need a gradient in the coming call.

    The active ones; for a method that scores growth by dense gradients in that
    call, all; for one that trains more than it computes with, those it trains.

    Args:
      opt_state: optimizer state (the sparse state may be nested in it).

    Returns:
      A mask tree.
    """
    replaced = jax.tree.map(
        lambda state: state._replace(
            masks=getattr(state.method_state, "gradient_masks", lambda m: m)(
                state.masks
            )
        ),
        masks_lib.find_states(opt_state),
        is_leaf=lambda node: isinstance(node, base.SparseState),
    )
    return masks_lib.get_masks([s._replace(inner_state=()) for s in replaced])


def _by_state(params: base.Params, opt_state: Any, name: str, default: Any):
    """Applies a function of the method state, or the default, per sparse state."""
    states = masks_lib.find_states(opt_state)
    masks_lib.check_masks(params, masks_lib.get_masks(opt_state))
    for state in states:
        fn = getattr(state.method_state, name, None)
        params = masks_lib.apply_where_seen(fn or default, params, state.masks)
    return params
