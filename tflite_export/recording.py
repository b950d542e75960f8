"""What a function does, as a flat list of operations.

JAX records a function as operations and calls of other recordings. Here the calls are
opened, what does not depend on the inputs is computed, and what nobody reads is left
out. The list can be gone through, changed, and computed again.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Recorded calls that are the same as the operations inside, when nothing is
# differentiated.
_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What depends on the inputs.

    Attributes:
      shape: of the array.
      dtype: of its entries.
    """

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One step of a function.

    Attributes:
      primitive: JAX's operation.
      settings: its parameters.
      inputs: values, and arrays where something is constant.
      outputs: what it computes.
      scope: the names of the modules it stands in, such as ``ResNet/stem/conv``.
    """

    primitive: Any
    settings: dict[str, Any]
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    scope: str

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A function of arrays; call it to compute it.

    Attributes:
      inputs: its arguments.
      operations: in an order in which they can be computed.
      outputs: values, and arrays where an output is constant.
      structure: of the pytree of outputs.
    """

    inputs: tuple[Value, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Any, ...]
    structure: Any

    def __call__(self, *inputs: Any) -> Any:
        """Computes the outputs."""
        arrays: dict[Value, Any] = dict(zip(self.inputs, inputs, strict=True))
        for operation in self.operations:
            given = [arrays[x] if isinstance(x, Value) else x for x in operation.inputs]
            results = compute(operation, given)
            arrays.update(zip(operation.outputs, results, strict=True))
        return self.structure.unflatten(
            arrays[x] if isinstance(x, Value) else spread(x) for x in self.outputs
        )


def record(
    function: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]
) -> Recording:
    """Records what a function does.

    Args:
      function: from arrays to a pytree of arrays.
      specs: shape and type of each argument.

    Returns:
      The same function, flat.

    Example:
      >>> spec = jax.ShapeDtypeStruct((2,), "float32")
      >>> recording = record(lambda x: jax.nn.relu(x) * jnp.exp(0.0), [spec])
      >>> [operation.name for operation in recording.operations]
      ['max', 'mul']
      >>> recording(jnp.array([-1.0, 2.0]))
      Array([0., 2.], dtype=float32)
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*specs)
    inputs = tuple(_value(variable) for variable in traced.jaxpr.invars)
    operations: list[Operation] = []
    outputs = _flatten(traced.jaxpr, traced.consts, inputs, "", operations)
    return Recording(
        inputs,
        tuple(_read_ones(operations, outputs)),
        tuple(outputs),
        jax.tree.structure(shapes),
    )


def compute(operation: Operation, arrays: Sequence[Any]) -> list[Any]:
    """Computes an operation.

    Args:
      operation: which.
      arrays: its inputs.

    Returns:
      Its outputs.
    """
    with jax.named_scope(operation.scope):
        result = operation.primitive.bind(*map(spread, arrays), **operation.settings)
    return list(result) if operation.primitive.multiple_results else [result]


def shrink(array: Any) -> np.ndarray:
    """A constant with size 1 along the axes that it is only repeated along.

    Constants that were broadcast are views that take no memory; so are they in the
    model, as long as nobody writes them out.

    Args:
      array: a constant of a recording.

    Returns:
      What it was broadcast from, of the same rank.

    Example:
      >>> shrink(np.broadcast_to(np.arange(3), (4, 3))).shape
      (1, 3)
    """
    array = np.asarray(array)
    return array[tuple(slice(0, 1 if n == 0 else None) for n in array.strides)]


def spread(array: Any) -> Any:
    """Undoes `shrink` by an operation of JAX; leaves other arrays as they are."""
    if not isinstance(array, np.ndarray):
        return array
    small = shrink(array)
    if small.shape == array.shape:
        return array
    return lax.broadcast_in_dim(small, array.shape, range(array.ndim))


def _flatten(
    jaxpr: Any,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    scope: str,
    operations: list[Operation],
) -> list[Any]:
    """Appends the operations inside of a jaxpr, and returns its outputs."""
    found: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_known, consts), strict=True))
    found.update(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        if hasattr(atom, "val"):
            return np.asarray(atom.val, atom.aval.dtype)
        return found[atom]

    for equation in jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        inner = str(equation.source_info.name_stack)
        within = "/".join(name for name in (scope, inner) if name)
        if equation.primitive.name in _CALLS:
            called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            results = _flatten(
                getattr(called, "jaxpr", called),
                getattr(called, "consts", ()),
                arguments,
                within,
                operations,
            )
        else:
            operation = Operation(
                equation.primitive,
                equation.params,
                tuple(arguments),
                tuple(_value(variable) for variable in equation.outvars),
                within,
            )
            if any(isinstance(x, Value) for x in arguments):
                operations.append(operation)
                results = operation.outputs
            else:
                results = _constants(operation)
        found.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constants(operation: Operation) -> list[Any]:
    """The outputs of an operation on constants."""
    if operation.name == "broadcast_in_dim" and _is_plain(operation.inputs[0]):
        shape = operation.settings["shape"]
        array = np.asarray(operation.inputs[0])
        places = dict(
            zip(operation.settings["broadcast_dimensions"], array.shape, strict=True)
        )
        sizes = [places.get(axis, 1) for axis in range(len(shape))]
        return [np.broadcast_to(array.reshape(sizes), shape)]
    with jax.ensure_compile_time_eval():
        return [_known(array) for array in compute(operation, operation.inputs)]


def _read_ones(operations: Sequence[Operation], outputs: Iterable[Any]) -> list[Any]:
    """The operations whose outputs something reads."""
    read = {x for x in outputs if isinstance(x, Value)}
    kept = []
    for operation in reversed(operations):
        if read.intersection(operation.outputs):
            kept.append(operation)
            read.update(x for x in operation.inputs if isinstance(x, Value))
    return kept[::-1]


def _value(variable: Any) -> Value:
    return Value(tuple(variable.aval.shape), variable.aval.dtype)


def _known(array: Any) -> Any:
    return np.asarray(array) if _is_plain(array) else array


def _is_plain(array: Any) -> bool:
    """Whether NumPy can hold it; keys of random numbers it cannot."""
    return not jnp.issubdtype(array.dtype, jax.dtypes.extended)
