"""The records that a method, the transformation and a training state are made of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import jax

# A tree is any pytree; the aliases only say what its leaves are.
Params = Any
Masks = Any
Tree = Any
# A condition on, or a number that depends on, the 1-based number of the call.
Schedule = Callable[[jax.Array], jax.typing.ArrayLike]
Ratio = Callable[[jax.Array], jax.typing.ArrayLike]

_Described = TypeVar("_Described", bound=Callable[..., Any])


class EmptyState(NamedTuple):
    """The state of a method that remembers nothing."""


class SparseState(NamedTuple):
    """What `sparse_transform` carries from call to call; arrays only.

    Attributes:
      count: calls so far, int32[].
      key: threefry key data, uint32[2]; constant, call t uses `fold_in(key, t)`.
      masks: tree of the parameters' structure; bool[] (True) where a leaf is never
        rewired, else bool of the leaf's shape, True = active.
      inner_state: exactly what the inner optimizer's `init` returns.
      method_state: a NamedTuple of arrays that belongs to the method. It may carry
        the methods `sparsify(params, masks)`, `effective_params(params, masks)` and
        `gradient_masks(masks)`; the functions of these names use them if present.
    """

    count: jax.Array
    key: jax.Array
    masks: Masks
    inner_state: Any
    method_state: Any


@dataclasses.dataclass(frozen=True)
class Targets:
    """How many entries each leaf starts with, and how the first mask is drawn.

    Attributes:
      sizes: number of entries of each sparsifiable leaf, by path.
      counts: number of active entries of each, by path; ints, or int32[] (perhaps
        traced) where the caller gave the masks.
      draw: `"random"` (uniform without replacement) or `"magnitude"` (the largest
        |w| of the initial values).
    """

    sizes: Mapping[str, int]
    counts: Mapping[str, int | jax.Array]
    draw: Literal["random", "magnitude"] = "random"


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method sees of one call.

    Attributes:
      t: number of this call, int32[], from 1; 0 in `Method.init`.
      key: typed PRNG key of this call.
      params: parameters after the inner update of this call, 0 where inactive
        (for methods that hold inactive entries: as they are held).
      grads: the gradients as they came in, unmasked; None in `Method.init`.
      masks: masks before this call's topology update.
      targets: tree of int32[]: how many entries of each leaf the caller asked for
        (before `Method.start` changed them); 0 for leaves that are to be dense.
      counted: tree of bool (Python's): whether the entries of the leaf are among
        those that the caller asked for a number of; False for leaves that are to be
        dense, even where `Method.start` gave them a mask of their shape.
      method_state: the method's state (after `observe`, in `rewire`).
      extra: further keyword arguments of `update`.
      frozen: tree of bool (or a prefix of one), True where the caller froze the
        leaf, or None. What `rewire` says of frozen leaves is disregarded.
    """

    t: jax.Array
    key: jax.Array
    params: Params
    grads: Params | None
    masks: Masks
    targets: Tree
    counted: Tree
    method_state: Any
    extra: Mapping[str, Any]
    frozen: Tree | None = None


class Rewired(NamedTuple):
    """What a topology update returns.

    Attributes:
      masks: the new masks, of the old structure and shapes.
      method_state: the new method state, of the old structure and types.
      grown: starting values of newly active entries, a tree like the parameters,
        or None for zeros. A method gives always one or always the other.
      reset_slots: bool (may be traced): zero the inner slots of every leaf, dense
        ones too.
      restarted: mask tree (True or False, shape `()`, in dense leaves), the entries
        that start anew like newly active ones although they were active before (as
        near to what `grown` says as rounding allows); None for none. A method gives
        always one or always the other.
    """

    masks: Masks
    method_state: Any
    grown: Params | None = None
    reset_slots: jax.typing.ArrayLike = False
    restarted: Masks | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """Training FLOPs of one example, in forward passes.

    A dense forward pass costs `f_dense`, a sparse one `f_sparse`; a backward pass
    costs twice its forward pass.

    Attributes:
      sparse: sparse forward passes in an ordinary step (3 = forward and backward).
      dense: dense forward passes in an ordinary step.
      update: (sparse, dense) of a step that scores growth by dense gradients, or
        None where such a step costs what any other does.
      backward: in an ordinary step, forward passes through the entries of the
        gradient masks, for a method that trains more than it computes with.
    """

    sparse: float = 3.0
    dense: float = 0.0
    update: tuple[float, float] | None = None
    backward: float = 0.0

    def per_example(
        self,
        f_sparse: float,
        f_dense: float,
        interval: float | None = None,
        f_backward: float | None = None,
    ) -> float:
        """FLOPs per example, averaged over an update interval.

        Args:
          f_sparse: FLOPs of one sparse forward pass.
          f_dense: FLOPs of one dense forward pass.
          interval: steps between topology updates; needed where `update` is set.
          f_backward: FLOPs of a forward pass through the entries of the gradient
            masks; needed where `backward` is set.

        Returns:
          FLOPs per example.

        Raises:
          ValueError: if the interval or `f_backward` is missing.

        >>> round(Cost(update=(2, 1)).per_example(0.2, 1.0, interval=100), 6)
        0.607921
        """
        ordinary = self.sparse * f_sparse + self.dense * f_dense
        if self.backward:
            if f_backward is None:
                raise ValueError(
                    "f_backward=None: this method trains more entries than it "
                    "computes with; pass the FLOPs of a forward pass through those "
                    "of gradient_masks(opt_state)."
                )
            ordinary += self.backward * f_backward
        if self.update is None:
            return ordinary
        if interval is None:
            raise ValueError(
                "interval=None: the cost of this method depends on how often it "
                "updates the topology; pass the update interval in steps."
            )
        update = self.update[0] * f_sparse + self.update[1] * f_dense
        return (ordinary * interval + update) / (interval + 1)


@dataclasses.dataclass(frozen=True)
class Card:
    """What a method goes by, in a few words: for tables, nothing computes with it.

    As a decorator it makes itself the `card` of what it stands above.

    Attributes:
      prunes: which active entries go.
      grows: which inactive entries come.
      scope: over what entries compete: `"layer"`, `"global"` or in other words.

    >>> @Card(prunes="smallest |w|", grows="at random")
    ... def mine(update_ratio): ...
    >>> mine.card.scope
    'layer'
    """

    prunes: str
    grows: str = "nothing"
    scope: str = "layer"

    def __call__(self, described: _Described) -> _Described:
        """Attaches the card."""
        described.card = self  # pyright: ignore[reportFunctionMemberAccess]
        return described


def never(t: jax.Array) -> bool:
    """A condition that holds on no call."""
    del t
    return False


@dataclasses.dataclass(frozen=True)
class Method:
    """A sparse-training method; all that `sparse_transform` knows of it.

    Attributes:
      name: what to call it in tables and messages.
      schedule: `schedule(t) -> bool[]`, whether call t (int32[], from 1) ends with
        a topology update.
      rewire: `rewire(context) -> Rewired`, the topology update. Traced once, run
        only on scheduled calls.
      cost: how its training FLOPs are counted.
      start: `start(targets) -> targets`; may change the initial counts and the way
        the first mask is drawn, and raises ValueError where the method cannot work
        with them.
      init: `init(context) -> method_state`, a NamedTuple of arrays.
      observe: `observe(context) -> method_state`, on every call before the
        topology update; None leaves the state as it is.
      add_gradient: `add_gradient(context) -> tree` added to the masked gradients
        before the inner optimizer sees them (`context.params` are those before the
        update).
      after_step: `after_step(context) -> tree` added to the inner optimizer's
        updates of active entries.
      inner_gradients: what the inner optimizer sees: `"masked"` gradients of active
        entries, those of the entries that `method_state.gradient_masks` names
        (`"backward"`), or `"dense"` ones.
      slots: `"zero"` keeps the inner slots of inactive entries at zero; `"keep"`
        leaves them to the inner optimizer.
      inactive: `"zero"` sets inactive entries to zero; `"hold"` keeps their values:
        an entry outside the gradient masks does not move at all.
      dense_gradients: `dense_gradients(t) -> bool[]`, whether call t needs the
        gradients of inactive entries.
      grows: whether newly active entries start at `"zero"`, at a `"nonzero"` value
        (given in `Rewired.grown`, or held), or the method grows `"nothing"`. Says
        which methods a reparameterization may host.
    """

    name: str
    schedule: Schedule
    rewire: Callable[[Context], Rewired]
    cost: Cost = Cost()
    start: Callable[[Targets], Targets] = lambda targets: targets
    init: Callable[[Context], Any] = lambda context: EmptyState()
    observe: Callable[[Context], Any] | None = None
    add_gradient: Callable[[Context], Params] | None = None
    after_step: Callable[[Context], Params] | None = None
    inner_gradients: Literal["masked", "backward", "dense"] = "masked"
    slots: Literal["zero", "keep"] = "zero"
    inactive: Literal["zero", "hold"] = "zero"
    dense_gradients: Schedule = never
    grows: Literal["zero", "nonzero", "nothing"] = "zero"
