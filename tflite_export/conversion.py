"""From a JAX function to a .tflite model.

`jax2tf` makes a TensorFlow graph of the function with its weights as constants, and
TensorFlow's converter makes of it a file of builtin operators only: any LiteRT runs it.
Because the weights are constants, batch norm folds into them and ReLU into the
convolution in front of it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

import neurrev_jax
from tflite_export import channels, graph, rewriting
from tflite_export.errors import ExportError
from tflite_export.exported import Exported
from tflite_export.extra import import_tensorflow, quiet
from tflite_export.recording import record
from tflite_export.verification import check

Precision = Literal["float32", "float16", "int8", "dynamic_int8"]
Rewrite = Literal["none", "shift"]
PRECISIONS = ("float32", "float16", "int8", "dynamic_int8")
REWRITES = ("none", "shift")


def convert(
    apply_fn: Callable[..., Any],
    params: Any,
    input_spec: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *,
    masks: Any = None,
    precision: Precision = "float32",
    sparse: bool = True,
    rewrite: Rewrite = "none",
    representative_data: Iterable[Any] | None = None,
) -> Exported:
    """Converts a JAX function to a .tflite model, and sees that it runs.

    Channels that make no difference, because the method removed them or no weight of
    theirs is left, are cut out with the weights that read them, see
    `tflite_export.channels`.

    Args:
      apply_fn: ``apply_fn(params, *inputs)``, any function that JAX can trace. What it
        closes over becomes constant as well.
      params: its weights, a pytree of arrays: for a network trained by
        `neurrev_jax.sparse_transform` what `neurrev_jax.effective_params` returns.
      input_spec: shape and type of each input, the batch size included (1 for a
        phone); one, or a sequence of them.
      masks: mask tree that `params` are put under first; None if they are masked.
      precision: ``"float32"``; ``"float16"``, stored in half the bytes and computed
        in float32 on a CPU; ``"int8"``, weights and feature maps in 8 bits with
        scales from `representative_data`; ``"dynamic_int8"``, weights in 8 bits,
        feature maps quantized as they come.
      sparse: store sparse weights in compressed rows. Smaller, and a condition for
        sparse computation; not for ``"dynamic_int8"``, which LiteRT cannot run so.
      rewrite: ``"shift"`` makes the 3x3 convolutions of a network such as a CIFAR
        ResNet computable in sparse form on Arm, see `tflite_export.rewriting`.
      representative_data: for ``"int8"``, some hundred typical inputs: arrays like
        `input_spec`, or tuples of them where there are several inputs.

    Returns:
      The model, which LiteRT has run once on random inputs, with a finite result near
      that of the JAX function. `tflite_export.verify` says how near on real ones.

    Raises:
      ExportError: for an unknown or contradictory choice, masks that do not fit, or a
        function that needs more than builtin operators.
      VerificationError: if the model does not run or computes something else; its
        message names what to choose instead, its attribute `exported` holds the model.
      MissingExtraError: if TensorFlow or LiteRT is not installed.
    """
    specs = _check_specs(input_spec)
    _check_choices(precision, rewrite, sparse, representative_data)
    if masks is not None:
        try:
            params = neurrev_jax.apply_masks(params, masks)
        except ValueError as error:
            raise ExportError(f"masks do not fit params: {error}") from error
    params = jax.tree.map(np.asarray, params)
    samples = None
    if representative_data is not None:
        samples = _as_samples(representative_data, specs)

    def reference(*inputs: Any) -> Any:
        return apply_fn(params, *inputs)

    cut = channels.cut(record(reference, specs))

    def narrower(*inputs: Any) -> Any:
        # Has a name, which stands in that of every tensor.
        return cut.recording(*inputs)

    function = narrower if cut.removed else reference
    if rewrite == "shift":
        function = rewriting.rewrite(function, specs)
    model = _to_tflite(function, specs, precision, sparse, samples)
    if rewrite == "shift":
        model = graph.with_own_pads(model)
    exported = Exported(
        model=model,
        precision=precision,
        sparse=sparse,
        rewrite=rewrite,
        inputs=specs,
        reference=jax.jit(reference),
        weights=weights_by_path(params),
        dead_channels=cut.removed,
        kept_channels=cut.kept,
    )
    check(exported, None if samples is None else samples[0])
    return exported


def weights_by_path(params: Any) -> dict[str, np.ndarray]:
    """The weights of two or more axes, by path.

    Args:
      params: a pytree of arrays.

    Returns:
      From a path such as ``stem/conv/kernel`` to the array.

    Example:
      >>> list(weights_by_path({"a": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}}))
      ['a/kernel']
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
        if np.ndim(leaf) >= 2
    }


def _check_specs(input_spec: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    specs = input_spec if isinstance(input_spec, tuple | list) else (input_spec,)
    for spec in specs:
        shape = getattr(spec, "shape", None)
        if shape is None or not hasattr(spec, "dtype") or not all(shape):
            raise ExportError(
                f"input_spec={spec!r} has no fixed shape and type; give a "
                "jax.ShapeDtypeStruct per input, such as "
                "jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')."
            )
    return tuple(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs)


def _check_choices(
    precision: str, rewrite: str, sparse: bool, representative_data: Any
) -> None:
    for name, value, known in (
        ("precision", precision, PRECISIONS),
        ("rewrite", rewrite, REWRITES),
    ):
        if value not in known:
            listed = ", ".join(map(repr, known))
            raise ExportError(f"{name}={value!r} is unknown; choose one of {listed}.")
    if precision == "dynamic_int8" and sparse:
        raise ExportError(
            "precision='dynamic_int8' with sparse=True converts to a model that "
            "LiteRT's default delegate does not run; choose sparse=False (compressed, "
            "the file is about as small), or precision='float16' or 'int8'."
        )
    if rewrite == "shift" and precision in ("int8", "dynamic_int8"):
        raise ExportError(
            f"rewrite='shift' with precision={precision!r} gains nothing: sparse "
            "inference computes in float32 and float16 only; choose one of those, or "
            "rewrite='none'."
        )
    if precision == "int8" and representative_data is None:
        raise ExportError(
            "precision='int8' needs representative_data, some hundred typical inputs "
            "from which the scales are taken; give them, or choose 'dynamic_int8'."
        )
    if precision != "int8" and representative_data is not None:
        raise ExportError(
            f"representative_data has no effect with precision={precision!r}; leave it "
            "out, or choose 'int8'."
        )


def _to_tflite(
    function: Callable[..., Any],
    specs: tuple[jax.ShapeDtypeStruct, ...],
    precision: str,
    sparse: bool,
    samples: list[tuple[np.ndarray, ...]] | None,
) -> bytes:
    tf = import_tensorflow()
    signature = [
        tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}")
        for i, spec in enumerate(specs)
    ]
    with quiet():
        # Imports TensorFlow, so that it cannot stand at the top.
        from jax.experimental import jax2tf

        traced = tf.function(
            jax2tf.convert(function, with_gradient=False),
            input_signature=signature,
            autograph=False,
        )
        concrete = traced.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], traced)
    builtins = [tf.lite.OpsSet.TFLITE_BUILTINS]
    optimizations = []
    if precision != "float32":
        optimizations.append(tf.lite.Optimize.DEFAULT)
    if sparse:
        optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif precision == "int8":
        # Inputs and outputs stay float32, so that callers need no scales.
        converter.representative_dataset = lambda: map(list, samples or ())
        builtins = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.target_spec.supported_ops = builtins
    converter.optimizations = optimizations
    return run_converter(converter)


def run_converter(converter: Any) -> bytes:
    """Runs TensorFlow's converter, quietly.

    Args:
      converter: a `tf.lite.TFLiteConverter`.

    Returns:
      Contents of a .tflite file.

    Raises:
      ExportError: if something in the function has no builtin operator.
    """
    with quiet():
        try:
            return bytes(converter.convert())
        except Exception as error:
            raise ExportError(
                "TensorFlow's converter cannot express this function in builtin "
                f"operators: {_reason(error)}. Replace the operation that it names."
            ) from error


def _as_samples(
    data: Iterable[Any], specs: tuple[Any, ...]
) -> list[tuple[np.ndarray, ...]]:
    samples = []
    wanted = tuple(spec.shape for spec in specs)
    for sample in data:
        arrays = sample if isinstance(sample, tuple | list) else (sample,)
        got = tuple(np.shape(array) for array in arrays)
        if got != wanted:
            raise ExportError(
                f"representative_data: sample {len(samples)} has arrays of the shapes "
                f"{got}, and the inputs have {wanted}; give arrays like input_spec."
            )
        samples.append(
            tuple(
                np.asarray(array, spec.dtype)
                for array, spec in zip(arrays, specs, strict=True)
            )
        )
    if not samples:
        raise ExportError(
            "representative_data holds no sample; give some hundred typical inputs."
        )
    return samples


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Of a page of notes, the operation that could not be translated.
    found = re.search(r"error: ('[^']+' op.*?)(?= res = |$)", text)
    return (found.group(1) if found else text or type(error).__name__)[:300].rstrip(".")
