"""What stands in a .tflite file: its operators and tensors, read and changed.

Shape letters: R rank of a tensor.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from tflite_export.errors import ExportError
from tflite_export.extra import import_flatbuffers, import_schema

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the main graph.

    Attributes:
      index: its number in the file.
      name: as the converter called it; holds the scopes of the JAX function.
      shape: R sizes.
      dtype: of NumPy, or the name of a type that NumPy does not have.
      data: the stored values of a constant, flat (of a sparse one: of its blocks
        that are not all zero); None for what is computed.
      is_sparse: whether the values are stored in compressed rows.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: Any
    data: np.ndarray | None
    is_sparse: bool

    @property
    def is_constant(self) -> bool:
        """Whether its values are in the file."""
        return self.data is not None

    @property
    def size(self) -> int:
        """Number of entries, stored or not."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nonzero(self) -> int:
        """Number of stored values that are not zero; 0 for what is computed."""
        return 0 if self.data is None else int(np.count_nonzero(self.data))


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """An operator of the main graph.

    Attributes:
      index: its place in the order of execution.
      kind: such as ``"CONV_2D"``.
      inputs: numbers of tensors; -1 for an optional one that is not there.
      outputs: numbers of tensors.
      options: its settings, by the names of the file format.
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """The main graph of a .tflite file.

    Attributes:
      tensors: by number.
      operators: in the order of execution.
      inputs: numbers of the tensors that the caller gives.
      outputs: numbers of the tensors that the caller gets.
      metadata: texts stored beside the graph, by name.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, bytes]

    def histogram(self) -> dict[str, int]:
        """How many operators there are of each kind, most frequent first."""
        return dict(collections.Counter(op.kind for op in self.operators).most_common())

    def producer(self, tensor: int) -> Operator | None:
        """The operator that computes a tensor, or None."""
        return next((op for op in self.operators if tensor in op.outputs), None)

    def consumers(self, tensor: int) -> list[Operator]:
        """The operators that read a tensor."""
        return [op for op in self.operators if tensor in op.inputs]

    def constant_behind(self, tensor: int) -> Tensor | None:
        """The constant that a tensor is, possibly unpacked first, or None.

        Sparse and half-precision constants reach their operator through DENSIFY and
        DEQUANTIZE.
        """
        while not self.tensors[tensor].is_constant:
            made_by = self.producer(tensor)
            if made_by is None or made_by.kind not in ("DENSIFY", "DEQUANTIZE"):
                return None
            tensor = made_by.inputs[0]
        return self.tensors[tensor]


def read(model: bytes) -> Graph:
    """Reads the main graph of a model.

    Args:
      model: contents of a .tflite file.

    Returns:
      The graph.

    Raises:
      ExportError: if these are not the contents of such a file.
      MissingExtraError: if LiteRT is not installed.
    """
    parsed = parse(model)
    kinds = names_of(import_schema().BuiltinOperator)
    types = names_of(import_schema().TensorType)
    graph = parsed.subgraphs[0]
    codes = [
        # Old files have the number in a field that ends at 127.
        kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in parsed.operatorCodes
    ]
    tensors = []
    for index, tensor in enumerate(graph.tensors):
        shape = () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
        dtype, data = _values(
            types[tensor.type], parsed.buffers[tensor.buffer].data, shape
        )
        name = (tensor.name or b"").decode("utf-8", "replace")
        tensors.append(
            Tensor(index, name, shape, dtype, data, tensor.sparsity is not None)
        )
    operators = [
        Operator(
            index=index,
            kind=codes[op.opcodeIndex],
            inputs=_numbers(op.inputs),
            outputs=_numbers(op.outputs),
            options=op.builtinOptions,
        )
        for index, op in enumerate(graph.operators)
    ]
    metadata = {
        entry.name.decode(): bytes(_bytes(parsed.buffers[entry.buffer].data))
        for entry in parsed.metadata or ()
    }
    return Graph(
        tuple(tensors),
        tuple(operators),
        _numbers(graph.inputs),
        _numbers(graph.outputs),
        metadata,
    )


def with_metadata(model: bytes, name: str, text: str) -> bytes:
    """Stores a text in a model; readers that do not know it pass over it.

    Args:
      model: contents of a .tflite file.
      name: under which to store it; replaces what is there of that name.
      text: anything.

    Returns:
      The new contents.

    Raises:
      ExportError: if these are not the contents of such a file.
    """
    schema = import_schema()
    parsed = parse(model)
    kept = [entry for entry in parsed.metadata or () if entry.name != name.encode()]
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(text.encode("utf-8"), np.uint8)
    parsed.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(parsed.buffers) - 1
    parsed.metadata = [*kept, entry]
    return pack(parsed)


def with_own_pads(model: bytes) -> bytes:
    """Gives every operator that reads padded values a PAD of its own.

    The converter computes equal values once. But a runtime merges a PAD into the
    convolution behind it only where nothing else reads its output.

    Args:
      model: contents of a .tflite file.

    Returns:
      The new contents; the same function.

    Raises:
      ExportError: if these are not the contents of such a file.
    """
    schema = import_schema()
    parsed = parse(model)
    graph = parsed.subgraphs[0]
    pad = {
        number
        for number, code in enumerate(parsed.operatorCodes)
        if max(code.builtinCode, code.deprecatedBuiltinCode)
        == schema.BuiltinOperator.PAD
    }
    new: list[Any] = []
    for op in graph.operators:
        if op.opcodeIndex not in pad:
            new.append(op)
            continue
        output = op.outputs[0]
        readers = [other for other in graph.operators if output in other.inputs]
        # The first keeps the old tensor, as does the caller if it is an output.
        for reader in readers[1:]:
            tensor = schema.TensorT()
            tensor.__dict__.update(graph.tensors[output].__dict__)
            graph.tensors.append(tensor)
            copy = schema.OperatorT()
            copy.__dict__.update(op.__dict__)
            copy.outputs = [len(graph.tensors) - 1]
            reader.inputs = [
                copy.outputs[0] if i == output else i for i in reader.inputs
            ]
            new.append(copy)
        new.append(op)
    if len(new) == len(graph.operators):
        return model
    graph.operators = new
    return pack(parsed)


def parse(model: bytes) -> Any:
    """The whole file as objects of the format's own classes, to change it.

    Args:
      model: contents of a .tflite file.

    Returns:
      A `ModelT`.

    Raises:
      ExportError: if these are not the contents of such a file.
    """
    schema = import_schema()
    if len(model) < 8 or model[4:8] != _IDENTIFIER:
        raise ExportError(
            f"these {len(model)} bytes are not a .tflite model (bytes 4 to 8 are not "
            f"{_IDENTIFIER.decode()}); name a file that `convert` wrote."
        )
    return schema.ModelT.InitFromPackedBuf(model, 0)


def pack(parsed: Any) -> bytes:
    """Undoes `parse`.

    Args:
      parsed: a `ModelT`.

    Returns:
      Contents of a .tflite file.
    """
    flatbuffers = import_flatbuffers()

    class AlignedBuilder(flatbuffers.Builder):
        """Puts constants where vector instructions can read them, as the format asks.

        The generated Python classes leave that out.
        """

        def StartVector(self, elem_size: int, num_elems: int, alignment: int) -> Any:
            wanted = _ALIGNMENT if elem_size == 1 else alignment
            return super().StartVector(elem_size, num_elems, wanted)

    builder = AlignedBuilder(1024)
    builder.Finish(parsed.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _numbers(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def names_of(enumeration: Any) -> dict[int, str]:
    """The names of the numbers of one of the format's enumerations."""
    return {
        value: name
        for name, value in vars(enumeration).items()
        if not name.startswith("_")
    }


def _values(type_name: str, raw: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    try:
        dtype: Any = np.dtype(type_name.lower())
    except TypeError:
        return type_name, None
    if raw is None or not len(raw):
        return dtype, None
    return dtype, np.frombuffer(_bytes(raw), dtype)


def _bytes(raw: Any) -> bytes:
    return b"" if raw is None else bytes(raw)
