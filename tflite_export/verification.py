"""Whether a converted model does what the JAX function does."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from tflite_export import layers as layers_lib
from tflite_export.errors import ExportError, VerificationError
from tflite_export.exported import Exported

# Largest difference from JAX, in parts of the largest output: rounding of float32 and
# float16, and some levels of 8 bits.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": 0.25, "dynamic_int8": 0.25}
"""What is accepted by precision, relative to the largest output."""
AGREEMENT = {"float32": 0.999, "float16": 0.99, "int8": 0.9, "dynamic_int8": 0.9}
"""How often the predicted class has to be that of JAX, by precision."""


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """How the weights of one leaf arrived in the file.

    Attributes:
      path: of the leaf in the parameters.
      size: number of weights.
      nonzero: those that are not zero in JAX.
      stored: those that are not zero in the file; None where the leaf was not found.
    """

    path: str
    size: int
    nonzero: int
    stored: int | None

    @property
    def sparsity(self) -> float:
        """Part of the weights that are zero in JAX."""
        return 1 - self.nonzero / self.size


@dataclasses.dataclass(frozen=True)
class Verification:
    """What a comparison of a model with its JAX function found.

    Attributes:
      samples: how many inputs both computed.
      max_difference: largest difference of any output.
      relative_difference: that, in parts of the largest output in JAX.
      agreement: part of the inputs with the same predicted class; None where the
        output is not one vector of scores per example.
      is_finite: whether every output of the model is a finite number.
      accuracy: part of the labels that the model predicts; None without labels.
      reference_accuracy: the same of the JAX function.
      weights: how each leaf of weights arrived.
      size: bytes of the file.
      gzipped_size: bytes of the file, compressed.
      problems: what is wrong, a sentence each; empty if the model passed.
    """

    samples: int
    max_difference: float
    relative_difference: float
    agreement: float | None
    is_finite: bool
    accuracy: float | None
    reference_accuracy: float | None
    weights: tuple[StoredWeights, ...]
    size: int
    gzipped_size: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(
    exported: Exported,
    inputs: Iterable[Any],
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    tolerance: float | None = None,
    agreement: float | None = None,
) -> Verification:
    """Runs a model in LiteRT beside the JAX function.

    Args:
      exported: from `convert`.
      inputs: real inputs, at least one: arrays of the model's input shape (with its
        batch size), or tuples of them where there are several inputs.
      labels: the class of every example, for models whose output is a vector of
        scores: as many as the inputs hold examples.
      tolerance: largest accepted difference, in parts of the largest output;
        `TOLERANCES` of the precision by default.
      agreement: least accepted part of inputs with the same predicted class;
        `AGREEMENT` of the precision by default.

    Returns:
      What was found; `passed` says whether that is acceptable.

    Raises:
      ExportError: if LiteRT cannot run the model, or inputs or labels do not fit.
    """
    runner = exported.runner()
    got: list[list[np.ndarray]] = []
    wanted: list[list[np.ndarray]] = []
    for sample in inputs:
        arrays = sample if isinstance(sample, tuple | list) else (sample,)
        arrays = [
            np.asarray(array, spec.dtype)
            for array, spec in zip(arrays, exported.inputs, strict=False)
        ]
        got.append(runner(*arrays))
        outputs = jax.tree.leaves(exported.reference(*arrays))
        wanted.append([np.asarray(x) for x in outputs])
    if not got:
        raise ExportError("there are no inputs to compare with; give at least one.")
    difference, largest, is_finite = _compare(got, wanted)
    relative = difference / largest if largest else difference
    same, accuracy, reference_accuracy = _classify(got, wanted, labels)
    weights = compare_weights(exported)
    problems = _judge(
        exported,
        relative,
        is_finite,
        same,
        weights,
        TOLERANCES[exported.precision] if tolerance is None else tolerance,
        AGREEMENT[exported.precision] if agreement is None else agreement,
    )
    return Verification(
        samples=len(got),
        max_difference=difference,
        relative_difference=relative,
        agreement=same,
        is_finite=is_finite,
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
        weights=weights,
        size=exported.size,
        gzipped_size=exported.gzipped_size,
        problems=tuple(problems),
    )


def check(exported: Exported, sample: tuple[Any, ...] | None = None) -> None:
    """Runs a model once, as `convert` does at its end.

    Args:
      exported: the model.
      sample: an array for each input; random numbers by default, which say little of
        a model that was fitted to a range of values.

    Raises:
      VerificationError: if it does not run or computes something else.
    """
    if sample is None:
        rng = np.random.default_rng(0)
        sample = tuple(_random(rng, spec) for spec in exported.inputs)
    try:
        found = verify(exported, [sample], agreement=0.0)
    except ExportError as error:
        raise VerificationError(f"{error}. {_alternative(exported)}", exported) from (
            error
        )
    if found.problems:
        raise VerificationError(
            f"the model is not what was converted: {found.problems[0]}", exported
        )


def compare_weights(exported: Exported) -> tuple[StoredWeights, ...]:
    """How each leaf of weights arrived in the file.

    A leaf is found by the name of its module; where a function has no names, by the
    number of its weights, and if possible of those that are not zero.

    Args:
      exported: the model.

    Returns:
      One for each leaf of two or more axes.
    """
    layers = layers_lib.find(exported.graph)
    used: set[int] = set()
    found = []
    for path, leaf in exported.weights.items():
        nonzero = int(np.count_nonzero(leaf))
        mine = [layer for layer in layers if layers_lib.belongs_to(layer, path)]
        if not mine:
            free = [layer for layer in layers if layer.weights.index not in used]
            alike = [layer for layer in free if layer.weights.size == leaf.size]
            if exported.dead_channels:
                # Of a layer that lost channels fewer weights are in the file.
                alike = [
                    layer
                    for layer in free
                    if layer.weights.size <= leaf.size
                    and layer.weights.nonzero <= nonzero
                ]
                alike.sort(key=lambda layer: -layer.weights.nonzero)
            same = [layer for layer in alike if layer.weights.nonzero == nonzero]
            mine = (same or alike)[:1]
        tensors = {layer.weights.index: layer.weights for layer in mine}
        used |= set(tensors)
        stored = sum(t.nonzero for t in tensors.values()) if tensors else None
        found.append(StoredWeights(path, leaf.size, nonzero, stored))
    return tuple(found)


def _random(rng: np.random.Generator, spec: jax.ShapeDtypeStruct) -> np.ndarray:
    if np.issubdtype(spec.dtype, np.floating):
        return rng.normal(size=spec.shape).astype(spec.dtype)
    return np.zeros(spec.shape, spec.dtype)


def _compare(got: list[Any], wanted: list[Any]) -> tuple[float, float, bool]:
    difference = largest = 0.0
    is_finite = True
    for outputs, references in zip(got, wanted, strict=True):
        for output, reference in zip(outputs, references, strict=True):
            if output.shape != reference.shape:
                raise ExportError(
                    f"the model has an output of shape {output.shape} where JAX has "
                    f"{reference.shape}."
                )
            output, reference = output.astype(float), reference.astype(float)
            is_finite &= bool(np.isfinite(output).all())
            gap = np.abs(output - reference)
            difference = max(difference, float(np.nan_to_num(gap, nan=np.inf).max()))
            largest = max(largest, float(np.abs(reference).max()))
    return difference, largest, is_finite


def _classify(
    got: list[Any], wanted: list[Any], labels: Any
) -> tuple[float | None, float | None, float | None]:
    if len(wanted[0]) != 1 or wanted[0][0].ndim != 2 or wanted[0][0].shape[1] < 2:
        if labels is not None:
            raise ExportError(
                "labels need a model whose only output is a vector of scores per "
                "example; leave them out."
            )
        return None, None, None
    predicted = np.concatenate([np.argmax(outputs[0], axis=1) for outputs in got])
    reference = np.concatenate([np.argmax(outputs[0], axis=1) for outputs in wanted])
    same = float(np.mean(predicted == reference))
    if labels is None:
        return same, None, None
    labels = np.asarray(labels)
    if labels.shape != predicted.shape:
        raise ExportError(
            f"there are {labels.size} labels for {predicted.size} examples; give one "
            "for each."
        )
    accuracies = np.mean(predicted == labels), np.mean(reference == labels)
    return same, float(accuracies[0]), float(accuracies[1])


def _judge(
    exported: Exported,
    relative: float,
    is_finite: bool,
    same: float | None,
    weights: tuple[StoredWeights, ...],
    tolerance: float,
    agreement: float,
) -> list[str]:
    problems = []
    if not is_finite:
        problems.append(f"its output is not finite in LiteRT. {_alternative(exported)}")
    elif not relative <= tolerance:
        problems.append(
            f"its output differs from JAX by {relative:.3g} of the largest output, "
            f"more than the {tolerance:g} accepted for {exported.precision}. "
            f"{_alternative(exported)}"
        )
    if same is not None and same < agreement:
        problems.append(
            f"it predicts the class of JAX for {same:.1%} of the inputs, less than the "
            f"{agreement:.1%} accepted for {exported.precision}. "
            f"{_alternative(exported)}"
        )
    problems.extend(
        f"{leaf.path} has {leaf.stored:,} weights that are not zero in the file, and "
        f"{leaf.nonzero:,} in JAX; its sparsity was lost."
        for leaf in weights
        if leaf.stored is not None and leaf.stored > leaf.nonzero
    )
    return problems


def _alternative(exported: Exported) -> str:
    """What to choose instead of a combination that fails."""
    if exported.precision == "float16" and exported.sparse:
        return (
            "float16 with sparse storage is known to fail in matrix products of very "
            "high sparsity; choose sparse=False, or precision='float32'."
        )
    if exported.precision in ("int8", "dynamic_int8") and exported.sparse:
        return (
            f"{exported.precision} with sparse storage is not supported by LiteRT's "
            "default delegate everywhere; choose sparse=False (compressed, the file is "
            "about as small), or precision='float16'."
        )
    if exported.precision == "int8":
        return (
            "Give more typical representative_data, or choose precision="
            "'dynamic_int8' or 'float16'."
        )
    if exported.precision == "dynamic_int8":
        return "Choose precision='int8' or 'float16'."
    if exported.precision == "float16":
        return "Choose precision='float32'."
    if exported.rewrite != "none":
        return "Choose rewrite='none'."
    return (
        "Choose sparse=False; if that does not help, the function cannot be exported."
    )
