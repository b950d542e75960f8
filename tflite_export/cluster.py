"""Which convolutions XNNPACK computes sparsely, and what keeps it from the others.

XNNPACK, LiteRT's CPU backend, computes sparsely in a connected part of the graph that
it can turn to channels-first layout as a whole. The rules below are those of its graph
optimizer (`xnn_subgraph_rewrite_for_nchw`, as of 2025):

- the part is entered through 3x3 convolutions of stride 2, padded by 1 on each side,
  from three channels;
- inside are 1x1 convolutions of stride 1 without padding, depthwise convolutions of
  3x3 or 5x5 padded by 1 or 2 on each side (stride 1 or 2), additions, multiplications
  and elementwise functions, in float32 or float16;
- it is left through a sum or mean over the pixels;
- nothing outside reads what is computed inside, and nothing inside reads anything
  else from outside;
- more than two thirds of the weights of its 1x1 convolutions (and of matrix products
  behind it) are zero, and some weights in the model are stored sparsely.

On Arm that is all. On x86 XNNPACK does it only on processors without AVX.
"""

import dataclasses

import numpy as np

from tflite_export import layers as layers_lib
from tflite_export.graph import Graph, Operator

_UNPACKING = ("DENSIFY", "DEQUANTIZE")
_BINARY = ("ADD", "MUL")
_UNARY = (
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU",
    "LOGISTIC", "NEG", "RELU", "RELU6", "RELU_N1_TO_1", "RSQRT", "SQRT", "SQUARE",
    "TANH",
)  # fmt: skip
_REDUCTIONS = ("SUM", "MEAN")
_INSIDE, _ENTRY, _EXIT = "inside", "entry", "exit"
_SAME = 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """Whether a layer is computed sparsely on Arm.

    Attributes:
      layer: from `layers.find`.
      is_sparse: whether it is a 1x1 convolution (or a matrix product) in a sparse part.
      reason: which rule keeps it from that; empty if nothing does.
    """

    layer: layers_lib.Layer
    is_sparse: bool
    reason: str

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds that are really executed on Arm."""
        if self.is_sparse:
            return self.layer.useful_multiply_adds
        return self.layer.multiply_adds


def place(graph: Graph) -> list[Placement]:
    """Finds the sparse parts of a model.

    Args:
      graph: of a model.

    Returns:
      Every layer with weights, in the order of execution.
    """
    nodes = _Nodes(graph)
    return [_place(layer, nodes) for layer in layers_lib.find(graph)]


def _place(layer: layers_lib.Layer, nodes: "_Nodes") -> Placement:
    number = layer.operator.index
    role, reason = nodes.roles[number]
    if role is None:
        return Placement(layer, False, reason)
    reason = nodes.problem_of(number)
    if reason:
        return Placement(layer, False, reason)
    is_entry = role == _ENTRY or layer.operator.kind == "DEPTHWISE_CONV_2D"
    why = "in the sparse part, and computed densely there" if is_entry else ""
    return Placement(layer, not is_entry, why)


class _Nodes:
    """The operators of a graph with their roles, and the parts they form."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._producers = {
            tensor: op for op in graph.operators for tensor in op.outputs
        }
        self._consumers: dict[int, list[Operator]] = {}
        for op in graph.operators:
            for tensor in set(op.inputs):
                self._consumers.setdefault(tensor, []).append(op)
        # A PAD that only one operator reads becomes part of that operator.
        self._merged = {
            op.index: self._consumers[op.outputs[0]][0].index
            for op in graph.operators
            if op.kind == "PAD" and len(self._consumers.get(op.outputs[0], ())) == 1
        }
        self.roles = {op.index: self._role(op) for op in graph.operators}
        self._part = {op.index: op.index for op in graph.operators}
        self._problems: dict[int, str] = {}
        self._connect()
        self._look_outside()
        self._weigh()

    def problem_of(self, number: int) -> str:
        """What keeps the part that an operator is in from being sparse; or nothing."""
        return self._problems.get(self._root(number), "")

    def _role(self, op: Operator) -> tuple[str | None, str]:
        graph = self._graph
        float_types = (np.dtype(np.float32), np.dtype(np.float16))
        output = graph.tensors[op.outputs[0]]
        if output.dtype not in float_types:
            return None, f"it computes in {output.dtype}, and sparse parts in float"
        if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            return self._role_of_convolution(op)
        if op.kind == "FULLY_CONNECTED":
            return _INSIDE, ""
        shapes = [graph.tensors[i].shape for i in op.inputs if i >= 0]
        if op.kind in _REDUCTIONS and len(shapes[0]) == 4:
            return _EXIT, ""
        if op.kind in _UNARY and len(shapes[0]) == 4:
            return _INSIDE, ""
        if op.kind in _BINARY and all(len(shape) == 4 for shape in shapes):
            return _INSIDE, ""
        return None, f"{op.kind} has no channels-first form there"

    def _role_of_convolution(self, op: Operator) -> tuple[str | None, str]:
        graph, options = self._graph, op.options
        weights = graph.constant_behind(op.inputs[1])
        if weights is None:
            return None, "its weights are not constant"
        height, width = weights.shape[1:3]
        size, stride = f"{height}x{width}", (options.strideH, options.strideW)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return None, "it is dilated"
        padding = self._padding(op, (height, width), stride)
        shown = "x".join(map(str, stride))
        channels = graph.tensors[op.inputs[0]].shape[-1]
        if op.kind == "DEPTHWISE_CONV_2D":
            if options.depthMultiplier != 1:
                return None, "it makes several channels of each one"
            if size not in ("3x3", "5x5") or stride not in ((1, 1), (2, 2)):
                return None, (
                    f"it is depthwise of {size} and stride {shown}; sparse parts have "
                    "3x3 and 5x5 of stride 1 and 2"
                )
            if padding != (height // 2,) * 4:
                return None, f"its padding is not {height // 2} on each side"
            return _INSIDE, ""
        if channels != weights.shape[-1]:
            return None, "it is divided into groups"
        if size == "1x1":
            if stride != (1, 1):
                return None, f"it is a 1x1 convolution of stride {shown}, not 1"
            if padding != (0,) * 4:
                return None, "it is a padded 1x1 convolution"
            return _INSIDE, ""
        if (size, stride, channels) == ("3x3", (2, 2), 3):
            if padding != (1,) * 4:
                return None, "its padding is not 1 on each side"
            return _ENTRY, ""
        return None, (
            f"it is a {size} convolution; sparse are 1x1 ones, and the entry is 3x3 of "
            "stride 2 from 3 channels"
        )

    def _padding(
        self, op: Operator, kernel: tuple[int, int], stride: tuple[int, int]
    ) -> tuple[int, ...] | None:
        """(top, bottom, left, right), None if it depends on the size of the input."""
        if op.options.padding == _SAME:
            if stride != (1, 1) or kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
                # Of two sides of an even size SAME pads one.
                return (0,) * 4 if kernel == (1, 1) else None
            return (kernel[0] // 2,) * 2 + (kernel[1] // 2,) * 2
        pad = self._producers.get(op.inputs[0])
        if pad is None or self._merged.get(pad.index) != op.index:
            return (0,) * 4
        amounts = self._graph.constant_behind(pad.inputs[1])
        if amounts is None or amounts.data is None:
            return None
        batch, rows, columns, channels = amounts.data.reshape(-1, 2).tolist()
        if batch != [0, 0] or channels != [0, 0]:
            return None
        return (*rows, *columns)

    def _root(self, number: int) -> int:
        while self._part[number] != number:
            number = self._part[number]
        return number

    def _inputs(self, op: Operator) -> list[tuple[int, Operator | None]]:
        """Tensors that are computed, with the operators that compute them."""
        found = []
        for tensor in op.inputs:
            if tensor < 0 or self._graph.constant_behind(tensor) is not None:
                continue
            made_by = self._producers.get(tensor)
            if made_by is not None and made_by.index in self._merged:
                tensor = made_by.inputs[0]
                made_by = self._producers.get(tensor)
            found.append((tensor, made_by))
        return found

    def _members(self) -> list[Operator]:
        """Operators that have to read channels-first values."""
        return [
            op
            for op in self._graph.operators
            if self.roles[op.index][0] in (_INSIDE, _EXIT) and op.kind not in _UNPACKING
        ]

    def _report(self, op: Operator, problem: str) -> None:
        # The first in the order of execution says most.
        self._problems.setdefault(self._root(op.index), problem)

    def _connect(self) -> None:
        broken = []
        for op in self._members():
            for _, made_by in self._inputs(op):
                if made_by is None:
                    broken.append((op, f"{_label(self._graph, op)} reads an input"))
                elif self.roles[made_by.index][0] is None:
                    why = self.roles[made_by.index][1]
                    name = _label(self._graph, made_by)
                    broken.append((op, f"its part reads {name}: {why}"))
                else:
                    self._part[self._root(made_by.index)] = self._root(op.index)
        for op, problem in broken:
            self._report(op, problem)

    def _look_outside(self) -> None:
        members = {op.index for op in self._members()}
        for op in self._members():
            for tensor, _ in self._inputs(op):
                readers = [
                    self._merged.get(reader.index, reader.index)
                    for reader in self._consumers.get(tensor, ())
                ]
                outside = [number for number in readers if number not in members]
                if outside:
                    other = self._graph.operators[outside[0]]
                    why = self.roles[other.index][1]
                    name = _label(self._graph, other)
                    self._report(op, f"its part is read by {name}: {why}")
                if tensor in self._graph.outputs:
                    self._report(op, "its part computes an output of the model")

    def _weigh(self) -> None:
        zeros: dict[int, int] = {}
        sizes: dict[int, int] = {}
        exits = set()
        for op in self._members():
            root = self._root(op.index)
            if self.roles[op.index][0] == _EXIT:
                exits.add(root)
            weights = self._weights_of(op)
            if weights is not None:
                size = weights.shape[0] * weights.shape[-1]
                sizes[root] = sizes.get(root, 0) + size
                zeros[root] = zeros.get(root, 0) + size - weights.nonzero
        stored = any(tensor.is_sparse for tensor in self._graph.tensors)
        for op in self._graph.operators:
            root = self._root(op.index)
            if self.roles[op.index][0] is None:
                continue
            size, empty = sizes.get(root, 0), zeros.get(root, 0)
            if root not in exits:
                self._report(op, "its part does not end in a sum or mean over pixels")
            elif 3 * empty <= 2 * size:
                share = empty / max(size, 1)
                self._report(
                    op,
                    f"{share:.1%} of the weights of its part are zero; more than two "
                    "thirds have to be",
                )
            elif not stored:
                self._report(op, "no weights are stored sparsely; use sparse=True")

    def _weights_of(self, op: Operator):
        if op.kind == "FULLY_CONNECTED":
            return self._graph.constant_behind(op.inputs[1])
        if op.kind != "CONV_2D":
            return None
        weights = self._graph.constant_behind(op.inputs[1])
        is_point = weights is not None and weights.shape[1:3] == (1, 1)
        return weights if is_point else None


def _label(graph: Graph, op: Operator) -> str:
    name = graph.tensors[op.outputs[0]].name
    known = layers_lib.scopes(name) or name.split(";")[-1].partition("/")[2]
    return f"{op.kind} {known}".rstrip()
