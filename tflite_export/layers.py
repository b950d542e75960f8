"""The layers of a model that hold weights, and the names they have in JAX."""

import dataclasses
import re

import numpy as np

from tflite_export.graph import Graph, Operator, Tensor

_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")
# What JAX calls the operations that read weights, at the end of a tensor's name.
_PRIMITIVE = re.compile(r"/(conv_general_dilated|dot_general)\w*$")


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a matrix product with constant weights.

    Attributes:
      name: the scopes of the JAX function, such as ``ResNet/stem/conv``; the
        converter's name where it kept none.
      operator: which operator it is.
      weights: the stored weights.
      kernel: (K, K) of a convolution; (1, 1) of a matrix product.
      positions: how often every weight is used for one output.
    """

    name: str
    operator: Operator
    weights: Tensor
    kernel: tuple[int, int]
    positions: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds with every weight, zero or not."""
        return self.positions * self.weights.size

    @property
    def useful_multiply_adds(self) -> int:
        """Multiply-adds with the weights that are not zero."""
        return self.positions * self.weights.nonzero


def find(graph: Graph) -> list[Layer]:
    """The layers, in the order of execution.

    Args:
      graph: of a model.

    Returns:
      One for each operator with weights; a rewritten convolution is several.
    """
    found = []
    for op in graph.operators:
        if op.kind not in _KINDS:
            continue
        weights = graph.constant_behind(op.inputs[1])
        if weights is None:
            continue
        output = graph.tensors[op.outputs[0]]
        is_convolution = len(weights.shape) == 4
        if op.kind == "FULLY_CONNECTED" or not is_convolution:
            kernel, positions = (1, 1), _rows(output)
        else:
            kernel = (weights.shape[1], weights.shape[2])
            positions = int(np.prod(output.shape[:3], dtype=np.int64))
        name = scopes(weights.name) or scopes(output.name) or output.name
        found.append(Layer(name, op, weights, kernel, positions))
    return found


def belongs_to(layer: Layer, path: str) -> bool:
    """Whether a layer holds the weights of a path.

    Args:
      layer: from `find`.
      path: of the weights, such as ``stem/conv/kernel``.

    Returns:
      Whether the layer's name ends like the path without its last entry.
    """
    module, _, _ = path.rpartition("/")
    return bool(module) and f"/{layer.name}".endswith(f"/{module}")


def _rows(output: Tensor) -> int:
    return int(np.prod(output.shape[:-1], dtype=np.int64))


def scopes(name: str) -> str:
    """The scopes of the JAX function in the converter's name of a tensor.

    Args:
      name: of a tensor.

    Returns:
      Such as ``ResNet/stem/conv``; empty if the name holds no operation on weights.

    Example:
      >>> scopes("max;jit(f)/ResNet/norm/mul;jit(f)/ResNet/conv/conv_general_dilated1")
      'ResNet/conv'
    """
    # Operations that were merged have their names joined by semicolons.
    for part in name.split(";"):
        match = _PRIMITIVE.search(part)
        if match:
            scopes = part[: match.start()].split("/")
            return "/".join(s for s in scopes if not re.match(r"\w+\(.*\)$", s))
    return ""
