"""A converted model and what it was converted from."""

import dataclasses
import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tflite_export import graph as graph_lib
from tflite_export.errors import ExportError
from tflite_export.extra import import_interpreter, quiet


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A .tflite model, with the JAX function that it computes.

    Attributes:
      model: contents of the file.
      precision: ``"float32"``, ``"float16"``, ``"int8"`` or ``"dynamic_int8"``.
      sparse: whether sparse weights are stored in compressed rows.
      rewrite: ``"none"`` or ``"shift"``.
      inputs: shape and type of every argument.
      reference: the function in JAX, with its weights, of these arguments.
      weights: by path, every weight of two or more axes, as it was given (masked).
      dead_channels: how many channels that are always zero, or that nothing reads,
        were cut out.
      kept_channels: how many channels without any weight stayed, by the reason.
    """

    model: bytes
    precision: str
    sparse: bool
    rewrite: str
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    reference: Callable[..., Any]
    weights: dict[str, np.ndarray]
    dead_channels: int = 0
    kept_channels: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def graph(self) -> graph_lib.Graph:
        """Its operators and tensors."""
        return graph_lib.read(self.model)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.model)

    @property
    def gzipped_size(self) -> int:
        """Bytes of the file as an app store delivers it: compressed."""
        return len(gzip.compress(self.model, compresslevel=6, mtime=0))

    def operators(self) -> dict[str, int]:
        """How many operators there are of each kind, most frequent first."""
        return self.graph.histogram()

    def with_model(self, model: bytes) -> "Exported":
        """The same with other contents of the file, a text added for example."""
        return dataclasses.replace(self, model=model)

    def runner(self, threads: int = 1) -> "Runner":
        """Loads the model into LiteRT.

        Args:
          threads: how many threads it computes with, at least 1.

        Returns:
          What is called like the JAX function.

        Raises:
          ExportError: if LiteRT cannot run it; some combinations of precision and
            sparsity convert and do not run.
        """
        return Runner(self.model, threads)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file; what is there before is replaced whole or not at all.

        Args:
          path: where to.

        Returns:
          The path.

        Raises:
          ExportError: if it cannot be written.
        """
        return write_file(Path(path), self.model)


class Runner:
    """A model in LiteRT, called with NumPy arrays.

    Args:
      model: contents of a .tflite file.
      threads: how many threads it computes with, at least 1.

    Raises:
      ExportError: if LiteRT cannot load or prepare it.
    """

    def __init__(self, model: bytes, threads: int = 1):
        interpreter = import_interpreter()
        try:
            with quiet():
                self._interpreter = interpreter(
                    model_content=model, num_threads=threads
                )
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ExportError(
                f"LiteRT cannot run this model: {_one_line(error)}"
            ) from (error)
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        """Computes the outputs for one set of inputs.

        Args:
          *arrays: of the shapes and types of the model's inputs.

        Returns:
          Copies of its outputs, in order.

        Raises:
          ExportError: if the arrays do not fit.
        """
        if len(arrays) != len(self.inputs):
            raise ExportError(
                f"the model has {len(self.inputs)} inputs and got {len(arrays)} arrays."
            )
        for detail, array in zip(self.inputs, arrays, strict=True):
            try:
                self._interpreter.set_tensor(detail["index"], np.asarray(array))
            except ValueError as error:
                raise ExportError(
                    f"input {detail['name']!r} must be {detail['dtype'].__name__} of "
                    f"shape {tuple(detail['shape'])}: {error}"
                ) from error
        self.invoke()
        return [self._interpreter.get_tensor(out["index"]) for out in self.outputs]

    def invoke(self) -> None:
        """Computes once more with the inputs that are set; for timing."""
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise ExportError(
                f"LiteRT stopped in this model: {_one_line(error)}"
            ) from (error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def write_file(path: Path, contents: bytes) -> Path:
    """Writes a file whole or not at all.

    Args:
      path: where to; its directory is created if missing.
      contents: what to write.

    Returns:
      The path.

    Raises:
      ExportError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(contents)
        # Temporary files are the user's own only; this one is for others to read.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise ExportError(
            f"cannot write {path} ({error.strerror}); make room or choose another "
            "--out."
        ) from error
    return path
