"""The same network in other operations: without dead channels, and in 1x1 convolutions.

The function is traced, and what JAX recorded is gone through operation by operation.
Batch norm is folded into the weights of the convolution in front of it. Then

- a channel whose weights and bias are all zero, because a method removed it or no
  weight of it survived, is cut out where only convolutions read it, with the weights
  that read it;
- on request, 3x3 convolutions become shifts and 1x1 convolutions, for sparse inference
  on Arm.

XNNPACK, LiteRT's CPU backend, computes sparsely with 1x1 convolutions only, inside one
connected part of a network: entered through a 3x3 convolution of stride 2 from three
channels, left through a global average pool, with depthwise convolutions and additions
in between (`tflite_export.cluster` has the rules). A 3x3 convolution is a sum over its
nine taps of a 1x1 convolution of a shifted input, and a shift is a depthwise
convolution with a kernel of one 1. Written so, a CIFAR ResNet is such a part as a
whole. A tap whose weights are all zero is left out.

Shape letters: B examples, H and W pixels, C channels of the input, O of the output.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tflite_export import folding

_NHWC = ("NHWC", "HWIO", "NHWC")
_ENTRY_CHANNELS = 3
# Recorded calls that are the same as the operations inside, when nothing is
# differentiated.
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
# Operations that a sparse part goes through unharmed.
_ELEMENTWISE = ("add", "mul", "max", "min", "neg", "logistic", "tanh", "exp", "abs")


def rewrite(
    function: Callable[..., Any],
    specs: Sequence[jax.ShapeDtypeStruct],
    *,
    shifts: bool = True,
) -> Callable[..., Any]:
    """Folds batch norm, cuts dead channels out, and turns convolutions into shifts.

    With `shifts`, those convolutions are rewritten that a sparse part of the network
    can hold. These are, where their input is in such a part, 3x3 convolutions of stride
    1 or 2 padded by 1, and 1x1 convolutions of stride 2. A part begins at a 3x3
    convolution of stride 2 from three channels, or, for the first convolution of images
    of at most three channels, by an entry that is put in: the image spread to twice its
    size and read back by a convolution of stride 2.

    Args:
      function: from the inputs to any outputs, its weights constant.
      specs: shape and type of each input.
      shifts: whether to turn convolutions into shifts and 1x1 convolutions.

    Returns:
      A function equal to it up to rounding.

    Example:
      >>> def f(x):
      ...     kernel = jnp.zeros((3, 3, 2, 4)).at[1, 1].set(1.0)
      ...     return lax.conv_general_dilated(
      ...         x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> spec = jax.ShapeDtypeStruct((1, 4, 4, 2), "float32")
      >>> x = jnp.arange(32.0).reshape(1, 4, 4, 2)
      >>> bool((rewrite(f, [spec])(x) == f(x)).all())
      True
    """
    recorded, shapes = jax.make_jaxpr(function, return_shape=True)(*specs)
    structure = jax.tree.structure(shapes)

    def rewritten(*inputs: Any) -> Any:
        walk = _Walk(shifts)
        values = [folding.Computed(jnp.asarray(x), inside=False) for x in inputs]
        outputs = walk.run(recorded.jaxpr, recorded.consts, values)
        return structure.unflatten(walk.array(value) for value in outputs)

    return rewritten


def count_dead_channels(
    function: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]
) -> int:
    """How many channels `rewrite` cuts out.

    Args:
      function: from the inputs to any outputs, its weights constant.
      specs: shape and type of each input.

    Returns:
      Their number over all layers.
    """
    recorded = jax.make_jaxpr(function)(*specs)
    walk = _Walk(shifts=False)

    def count(*inputs: Any) -> Any:
        values = [folding.Computed(x, inside=False) for x in inputs]
        outputs = walk.run(recorded.jaxpr, recorded.consts, values)
        return [walk.array(value) for value in outputs]

    jax.eval_shape(count, *specs)
    return walk.dead_channels


class _Walk:
    """Goes through recorded operations and computes them, convolutions in their way."""

    def __init__(self, shifts: bool) -> None:
        self.dead_channels = 0
        self._shifts = shifts
        self._shifted: dict[tuple[int, int, int, int], Any] = {}
        self._kept: list[Any] = []

    def run(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], scope: str = ""
    ) -> list[Any]:
        """Computes the outputs of a recording that was made in a scope of modules."""
        readers = collections.Counter(
            atom
            for atoms in (*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars)
            for atom in atoms
            if not hasattr(atom, "val")
        )
        values: dict[Any, Any] = {}
        values.update(zip(jaxpr.constvars, map(folding.Known, consts), strict=True))
        for variable, value in zip(jaxpr.invars, inputs, strict=True):
            if isinstance(value, folding.Convolved):
                count = max(value.readers, readers[variable])
                value = dataclasses.replace(value, readers=count)
            values[variable] = value

        def value_of(atom: Any) -> Any:
            return folding.Known(atom.val) if hasattr(atom, "val") else values[atom]

        for equation in jaxpr.eqns:
            arguments = [value_of(atom) for atom in equation.invars]
            inner = str(equation.source_info.name_stack)
            within = "/".join(name for name in (scope, inner) if name)
            results = self._apply(equation, arguments, within)
            for variable, result in zip(equation.outvars, results, strict=True):
                if isinstance(result, folding.Convolved):
                    result = dataclasses.replace(result, readers=readers[variable])
                values[variable] = result
        return [value_of(atom) for atom in jaxpr.outvars]

    def array(self, value: Any) -> Any:
        """The array that a value stands for."""
        return (
            value.array
            if isinstance(value, folding.Known)
            else self._computed(value).array
        )

    def _apply(self, equation: Any, arguments: list[Any], scope: str) -> list[Any]:
        name = equation.primitive.name
        if name in _CALLS:
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            recording = getattr(inner, "jaxpr", inner)
            return self.run(recording, getattr(inner, "consts", ()), arguments, scope)
        if all(isinstance(argument, folding.Known) for argument in arguments):
            with jax.ensure_compile_time_eval():
                return [
                    folding.Known(x) for x in self._bind(equation, arguments, scope)
                ]
        if name == "conv_general_dilated":
            source, kernel = arguments
            conv = self._convolve(equation.params, source, kernel, scope)
        else:
            conv = folding.absorb(name, arguments) or folding.follow(
                equation, arguments, scope
            )
        if conv is not None:
            return [conv]
        # First, so that a convolution is computed in its own scope.
        dynamic = [
            self._computed(a) for a in arguments if not isinstance(a, folding.Known)
        ]
        inside = name in _ELEMENTWISE and all(value.inside for value in dynamic)
        results = self._bind(equation, arguments, scope)
        return [folding.Computed(x, inside) for x in results]

    def _bind(self, equation: Any, arguments: list[Any], scope: str) -> list[Any]:
        """Computes an operation as it was recorded."""
        arrays = [self.array(argument) for argument in arguments]
        primitive = equation.primitive
        with jax.named_scope(scope):
            result = primitive.bind(*arrays, **equation.params)
        return list(result) if primitive.multiple_results else [result]

    def _convolve(
        self, settings: dict[str, Any], source: Any, kernel: Any, scope: str
    ) -> folding.Convolved | None:
        """The convolution, not computed yet; None for one of a foreign kind."""
        if isinstance(source, folding.Known) or not isinstance(kernel, folding.Known):
            return None
        if not _is_channels_last(settings) or settings["batch_group_count"] != 1:
            return None
        weights = np.asarray(kernel.array, np.float64)
        bias = np.zeros(weights.shape[-1])
        is_plain = settings["feature_group_count"] == 1 and _is_undilated(settings)
        if is_plain and isinstance(source, folding.Convolved) and source.readers == 1:
            source = self._without_dead_channels(source)
            weights = weights[:, :, slice(None) if source.live is None else source.live]
        else:
            source = self._computed(source)
        return folding.Convolved(source, weights, bias, settings, scope)

    def _without_dead_channels(self, conv: folding.Convolved) -> folding.Computed:
        """A convolution that only another one reads."""
        is_live = conv.kernel.any(axis=(0, 1, 2)) | (conv.bias != 0)
        live = np.flatnonzero(is_live)
        is_depthwise = conv.settings["feature_group_count"] > 1
        if is_depthwise or conv.memory or not 0 < len(live) < len(is_live):
            return self._computed(conv)
        self.dead_channels += len(is_live) - len(live)
        fewer = dataclasses.replace(
            conv, kernel=conv.kernel[..., live], bias=conv.bias[live], memory={}
        )
        return dataclasses.replace(self._computed(fewer), live=live)

    def _computed(self, value: Any) -> folding.Computed:
        if isinstance(value, folding.Computed):
            return value
        if "value" not in value.memory:
            with jax.named_scope(value.scope):
                computed = self._compute(value)
            for equation, arguments, scope in value.after:
                filled = [computed if a is None else a for a in arguments]
                (array,) = self._bind(equation, filled, scope)
                computed = folding.Computed(array, computed.inside)
            value.memory["value"] = computed
        return value.memory["value"]

    def _compute(self, conv: folding.Convolved) -> folding.Computed:
        source, settings = conv.source, conv.settings
        size, stride = conv.kernel.shape[:2], tuple(settings["window_strides"])
        dtype = source.array.dtype
        kernel = conv.kernel.astype(dtype)
        bias = conv.bias.astype(dtype).reshape(1, 1, 1, -1)
        is_depthwise = settings["feature_group_count"] == source.array.shape[-1]
        is_plain = settings["feature_group_count"] == 1 and _is_undilated(settings)
        is_padded = _padding(settings) == ((size[0] // 2,) * 2, (size[1] // 2,) * 2)
        is_entry = (
            is_plain
            and (size, stride, is_padded) == ((3, 3), (2, 2), True)
            and source.array.shape[-1] == _ENTRY_CHANNELS
        )
        is_rewritable = (
            is_plain
            and is_padded
            and size in ((1, 1), (3, 3))
            and stride in ((1, 1), (2, 2))
        )
        is_rewritable &= self._shifts
        if not source.inside and is_rewritable and size == (3, 3) and not is_entry:
            source = self._enter(source)
            missing = source.array.shape[-1] - kernel.shape[2]
            kernel = np.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
        if not (source.inside and is_rewritable):
            inside = is_entry or (source.inside and is_depthwise)
            return folding.Computed(
                _plain(source.array, kernel, bias, settings), inside
            )
        total = None
        taps = [
            (i, j) for i in range(size[0]) for j in range(size[1]) if kernel[i, j].any()
        ]
        # Of a layer without any weight one tap remains, which costs nothing.
        for i, j in taps or [(size[0] // 2, size[1] // 2)]:
            moved = self._shift(source, i - size[0] // 2, j - size[1] // 2, stride[0])
            term = lax.conv_general_dilated(
                moved, kernel[i, j][None, None], (1, 1), "VALID",
                dimension_numbers=_NHWC,
            )  # fmt: skip
            total = term + bias if total is None else total + term
        return folding.Computed(total, inside=True)

    def _enter(self, source: folding.Computed) -> folding.Computed:
        """Into the sparse part, if images of so many channels can be brought there."""
        x = source.array
        if x.ndim != 4 or x.shape[-1] > _ENTRY_CHANNELS:
            return source
        key = (id(x), 0, 0, 0)
        if key not in self._shifted:
            b, h, w, c = x.shape
            # Three channels whatever the image has: of a single one the converter
            # would make other operations.
            identity = np.zeros((3, 3, _ENTRY_CHANNELS, _ENTRY_CHANNELS), x.dtype)
            identity[1, 1] = np.eye(_ENTRY_CHANNELS)
            with jax.named_scope("entry"):
                # Zeros between the pixels, by reshaping: every row and column is
                # followed by one of zeros that the stride passes over.
                gap = ((0, 0), (0, 0), (0, 0), (0, 2 * _ENTRY_CHANNELS - c))
                rows = jnp.reshape(jnp.pad(x, gap), (b * h, 1, 1, -1))
                rows = jnp.pad(rows, ((0, 0), (0, 1), (0, 0), (0, 0)))
                spread = jnp.reshape(rows, (b, 2 * h, 2 * w, _ENTRY_CHANNELS))
                self._shifted[key] = lax.conv_general_dilated(
                    spread,
                    jnp.asarray(identity),
                    (2, 2),
                    ((1, 1), (1, 1)),
                    dimension_numbers=_NHWC,
                )
            self._kept.append(x)
        return folding.Computed(self._shifted[key], inside=True)

    def _shift(
        self, source: folding.Computed, down: int, right: int, stride: int
    ) -> Any:
        """What lies so many pixels down and right of every stride-th pixel."""
        x = source.array
        if (down, right, stride) == (0, 0, 1):
            return x
        # By identity: the same array shifted alike for two convolutions is one.
        key = (id(x), down, right, stride)
        if key not in self._shifted:
            channels = x.shape[-1]
            one = np.zeros((3, 3, 1, channels), x.dtype)
            one[1 + down, 1 + right] = 1
            with jax.named_scope("shift"):
                self._shifted[key] = lax.conv_general_dilated(
                    x, jnp.asarray(one), (stride, stride), ((1, 1), (1, 1)),
                    dimension_numbers=_NHWC, feature_group_count=channels,
                )  # fmt: skip
            self._kept.append(x)
        return self._shifted[key]


def _plain(x: Any, kernel: Any, bias: Any, settings: dict[str, Any]) -> Any:
    convolved = lax.conv_general_dilated(
        x,
        kernel,
        settings["window_strides"],
        _padding(settings),
        rhs_dilation=settings["rhs_dilation"],
        lhs_dilation=settings["lhs_dilation"],
        dimension_numbers=_NHWC,
        feature_group_count=settings["feature_group_count"],
    )
    return convolved + bias if bias.any() else convolved


def _is_channels_last(settings: dict[str, Any]) -> bool:
    numbers = settings["dimension_numbers"]
    shapes = (1,) * len(numbers.lhs_spec)
    return len(shapes) == 4 and numbers == lax.conv_dimension_numbers(
        shapes, shapes, _NHWC
    )


def _is_undilated(settings: dict[str, Any]) -> bool:
    return {*settings["lhs_dilation"], *settings["rhs_dilation"]} == {1}


def _padding(settings: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((int(low), int(high)) for low, high in settings["padding"])
