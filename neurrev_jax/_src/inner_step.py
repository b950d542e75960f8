"""The inner optimizer's step, split where its slots are written.

An optimizer such as SGD with momentum or Adam computes new slots and then, from
these, the update. The transformation has to zero some of the new slots (those of
entries a topology update has just pruned). If the update went on reading the
unmasked slots, XLA would have to keep both versions, and that copy costs more than
the whole step. So the step is recorded operation by operation, and where it can be
shown that it makes no difference to any active entry, the part after the slots is
computed from the masked ones.

It makes no difference where everything between slot and update works entry by
entry. Any other optimizer (one that takes norms of its slots, say) keeps the update
it computed in the first place.
"""

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core


class _Kind(enum.Enum):
    """What a recorded value depends on."""

    SCALAR = "one number, or one number repeated"
    PARAM = "one parameter leaf and scalars, entry by entry"
    SLOT = "new slots of one leaf, that leaf and scalars, entry by entry"
    OTHER = "anything else"


@dataclasses.dataclass(frozen=True)
class _Property:
    kind: _Kind
    # Number of the parameter leaf, for the two kinds that belong to one.
    leaf: int = -1
    # Whether it is zero at an entry whose parameter and new slots are zero.
    zero: bool = False


# Elementwise operations, by when their result is certainly zero at an entry.
_ZERO_IF_ALL = {
    "add", "add_any", "sub", "max", "min", "neg", "sign", "abs", "sqrt", "square",
    "tanh", "convert_element_type", "copy", "copy_p", "reduce_precision",
}  # fmt: skip
_ZERO_IF_ANY = {"mul"}
_ZERO_IF_FIRST = {"div"}
_NEVER_ZERO = {
    "rsqrt", "exp", "log", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "not", "is_finite",
}  # fmt: skip
_ELEMENTWISE = (
    _ZERO_IF_ALL
    | _ZERO_IF_ANY
    | _ZERO_IF_FIRST
    | _NEVER_ZERO
    | {"integer_pow", "select_n"}
)


@dataclasses.dataclass
class _Operation:
    primitive: Any
    params: dict[str, Any]
    inputs: list[int]
    outputs: list[int]


class InnerStep:
    """A recorded call of the inner optimizer's `update`.

    Attributes:
      updates: leaves of the updates.
      state: leaves of the new state.
    """

    def __init__(
        self,
        update: Callable[..., tuple[Any, Any]],
        params: Any,
        arguments: tuple[Any, ...],
    ):
        """Traces and runs `update(params, *arguments) -> (updates, state)`."""
        closed, shape = jax.make_jaxpr(update, return_shape=True)(params, *arguments)
        self._values: list[Any] = []
        self._operations: list[_Operation] = []
        inputs = [self._add(leaf) for leaf in jax.tree.leaves((params, *arguments))]
        self._params = inputs[: len(jax.tree.leaves(params))]
        outputs = self._record(closed.jaxpr, closed.consts, inputs)
        self._inputs = set(inputs)
        number = len(jax.tree.leaves(shape[0]))
        self._updates, self._state = outputs[:number], outputs[number:]
        self._update_structure, self._state_structure = map(jax.tree.structure, shape)

    @property
    def updates(self) -> Any:
        """The updates, as the optimizer computed them."""
        leaves = [self._values[i] for i in self._updates]
        return self._update_structure.unflatten(leaves)

    @property
    def state(self) -> Any:
        """The optimizer's new state."""
        return self._state_structure.unflatten([self._values[i] for i in self._state])

    def updates_from(
        self, state: Any, slots: Sequence[int], sparse: Sequence[bool]
    ) -> tuple[list[Any], list[bool]]:
        """Recomputes the updates from (masked) slots where that is the same.

        Args:
          state: new state, of which some slot entries have been zeroed.
          slots: which leaves of the state are slots, by parameter leaf (-1: none).
          sparse: which leaves of the updates belong to sparse parameters.

        Returns:
          (leaves of the updates, for each whether it was computed from `state`).
          Such a leaf holds what the optimizer computed at every entry whose slots
          are untouched, and zero where parameter and slots are zero.
        """
        leaf_of = dict(zip(self._state, slots, strict=True))
        replaced = {
            index: leaf
            for index, leaf, slot in zip(
                self._state, jax.tree.leaves(state), slots, strict=True
            )
            if slot >= 0 and index not in self._inputs
        }
        properties = self._analyze({i: leaf_of[i] for i in replaced})
        derived = []
        for number, index in enumerate(self._updates):
            found = properties[index]
            own = found.kind is _Kind.SLOT and found.leaf == number
            derived.append(own and (found.zero or not sparse[number]))
        wanted = [i for i, d in zip(self._updates, derived, strict=True) if d]
        needed = self._needed(set(wanted), set(replaced))
        values = dict(replaced)
        for operation in self._operations:
            (output, *others) = operation.outputs
            kind = properties[output].kind
            # Whole arrays are computed anew even where they do not depend on slots,
            # lest they be kept from one use to the next.
            is_array = jnp.size(self._values[output]) > 1
            if others or output in replaced or output not in needed:
                continue
            if is_array and kind is not _Kind.OTHER:
                inputs = [values.get(i, self._values[i]) for i in operation.inputs]
                (values[output],) = _bind(operation, inputs)
        leaves = [
            values.get(i, self._values[i]) if d else self._values[i]
            for i, d in zip(self._updates, derived, strict=True)
        ]
        return leaves, derived

    def _add(self, value: Any) -> int:
        self._values.append(value)
        return len(self._values) - 1

    def _record(
        self, jaxpr: Any, consts: Sequence[Any], inputs: list[int]
    ) -> list[int]:
        env: dict[Any, int] = {}
        env.update(zip(jaxpr.invars, inputs, strict=True))
        env.update(
            (var, self._add(c)) for var, c in zip(jaxpr.constvars, consts, strict=True)
        )

        def read(atom):
            if isinstance(atom, jex_core.Literal):
                return self._add(atom.val)
            return env[atom]

        for eqn in jaxpr.eqns:
            arguments = [read(atom) for atom in eqn.invars]
            inlined = eqn.params.get("jaxpr")
            if eqn.primitive.name in ("jit", "pjit") and inlined is not None:
                outputs = self._record(inlined.jaxpr, inlined.consts, arguments)
            else:
                operation = _Operation(eqn.primitive, eqn.params, arguments, [])
                results = _bind(operation, [self._values[i] for i in arguments])
                operation.outputs = outputs = [self._add(r) for r in results]
                self._operations.append(operation)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _analyze(self, replaced: dict[int, int]) -> list[_Property]:
        """What every value depends on, given which ones are slots of which leaf."""
        properties = [
            _Property(_Kind.SCALAR if jnp.size(v) == 1 else _Kind.OTHER)
            for v in self._values
        ]
        for number, i in enumerate(self._params):
            properties[i] = _Property(_Kind.PARAM, number, zero=True)
        for operation in self._operations:
            given = [properties[i] for i in operation.inputs]
            for i in operation.outputs:
                properties[i] = _property_of(operation, given, self._values, i)
                if i in replaced:
                    properties[i] = _Property(_Kind.SLOT, replaced[i], zero=True)
        return properties

    def _needed(self, wanted: set[int], given: set[int]) -> set[int]:
        needed = set(wanted)
        for operation in reversed(self._operations):
            outputs = set(operation.outputs)
            if needed & outputs and not outputs & given:
                needed.update(operation.inputs)
        return needed


def _bind(operation: _Operation, inputs: list[Any]) -> list[Any]:
    bound = operation.primitive.get_bind_params(operation.params)
    # Early 0.10 releases of JAX return functions to pass first, later ones do not.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    result = operation.primitive.bind(*functions, *inputs, **params)
    return list(result) if operation.primitive.multiple_results else [result]


def _property_of(
    operation: _Operation, given: list[_Property], values: list[Any], output: int
) -> _Property:
    name = operation.primitive.name
    kinds = {p.kind for p in given}
    leaves = {p.leaf for p in given if p.kind in (_Kind.PARAM, _Kind.SLOT)}
    shape = jnp.shape(values[output])
    is_elementwise = name in _ELEMENTWISE and all(
        p.kind is _Kind.SCALAR or jnp.shape(values[i]) == shape
        for i, p in zip(operation.inputs, given, strict=True)
    )
    if kinds <= {_Kind.SCALAR}:
        repeats = is_elementwise or name == "broadcast_in_dim"
        known = repeats or jnp.size(values[output]) == 1
        return _Property(_Kind.SCALAR if known else _Kind.OTHER)
    if not is_elementwise or _Kind.OTHER in kinds or len(leaves) > 1:
        # One number out of arrays is a scalar like any other, but for slots: it
        # would come out different.
        is_scalar = jnp.size(values[output]) == 1 and _Kind.SLOT not in kinds
        return _Property(_Kind.SCALAR if is_scalar else _Kind.OTHER)
    kind = _Kind.SLOT if _Kind.SLOT in kinds else _Kind.PARAM
    zero = _is_zero(name, operation.params, [p.zero for p in given])
    return _Property(kind, leaves.pop(), zero)


def _is_zero(name: str, params: dict[str, Any], zero: list[bool]) -> bool:
    if name in _ZERO_IF_ALL:
        return all(zero)
    if name in _ZERO_IF_ANY:
        return any(zero)
    if name in _ZERO_IF_FIRST:
        return zero[0] and not zero[1]
    if name == "integer_pow":
        return zero[0] and params["y"] > 0
    if name == "select_n":
        return all(zero[1:])
    return False
