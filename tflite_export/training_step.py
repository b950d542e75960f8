"""A training step as a .tflite model: a network that goes on learning on a device.

Shape letters: B examples, H and W pixels, C channels, K classes.
"""

import collections
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import neurrev_jax
from neurrev_jax.models import ACTIVATIONS
from tflite_export import graph, trainer
from tflite_export.conversion import quiet, run_converter
from tflite_export.convolution_rules import with_builtin_gradients
from tflite_export.errors import ExportError, VerificationError
from tflite_export.exported import write_file
from tflite_export.extra import import_schema, import_tensorflow
from tflite_export.trainer import DESCRIPTION, MASKS, MOMENTUM, PARAMS, STATS, State
from tflite_export.training_step_sgd import Function, Step, named

Specs = dict[str, jax.ShapeDtypeStruct]

# LiteRT and JAX round in another order, and a value next to 0 may fall on the other
# side of a ReLU. What that does to gradients depends on the network: those of VGG-19 at
# new weights move by 2 % of their norm when images change by a millionth. So that is
# measured, in JAX, and LiteRT may be a few times as far from JAX. A gradient that is
# wrong differs by about its own norm.
_ROUNDING, _SAMPLES, _TIMES = 1e-5, 2, 3.0
# Also allowed, of the norm of an array and of that of all gradients together.
_TOLERANCE, _NEGLIGIBLE = 1e-2, 1e-4


@dataclasses.dataclass(frozen=True, eq=False)
class TrainableModel:
    """A .tflite model with the signatures ``train`` and ``infer``, and its state.

    Attributes:
      model: contents of the file. It holds no weights: they go in and come out.
      state: what training starts from; arrays by name, see `tflite_export.trainer`.
      description: settings of the step: momentum, weight_decay, nesterov,
        image_shape (with B), num_classes. Also stored in the file.
    """

    model: bytes
    state: State
    description: dict[str, Any]

    def operators(self) -> dict[str, dict[str, int]]:
        """How many operators of each kind each signature has, most frequent first."""
        schema = import_schema()
        parsed = graph.parse(self.model)
        kinds = graph.names_of(schema.BuiltinOperator)
        codes = [
            kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
            for code in parsed.operatorCodes
        ]
        return {
            signature.signatureKey.decode(): dict(
                collections.Counter(
                    codes[operator.opcodeIndex]
                    for operator in parsed.subgraphs[signature.subgraphIndex].operators
                ).most_common()
            )
            for signature in parsed.signatureDefs
        }

    def trainer(self, threads: int = 1) -> trainer.Trainer:
        """Loads the model into LiteRT, with the state that training starts from.

        Args:
          threads: how many threads it computes with, at least 1.

        Returns:
          What trains and infers.
        """
        return trainer.Trainer(self.model, self.state, threads)

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``training_step.tflite`` and ``state.npz``.

        Args:
          directory: where to; created if missing.

        Raises:
          ExportError: if they cannot be written.
        """
        directory = Path(directory)
        write_file(directory / "training_step.tflite", self.model)
        with tempfile.SpooledTemporaryFile() as file:
            arrays: dict[str, Any] = self.state
            np.savez(file, **arrays)
            file.seek(0)
            write_file(directory / "state.npz", file.read())


def convert_training_step(
    network: Any,
    variables: Mapping[str, Any],
    input_spec: jax.ShapeDtypeStruct,
    *,
    masks: Any = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    infer_batch_size: int | None = None,
) -> TrainableModel:
    """Converts one step of SGD to a .tflite model of builtin operators.

    The signature ``train`` takes ``images`` [B, H, W, C], ``labels`` int32[B],
    ``learning_rate`` float32[] and the state, and returns the new state with ``loss``
    and ``accuracy`` of the batch. With g the gradient of the mean cross-entropy, at
    every active entry

        m <- momentum m + g + weight_decay w,   w <- w - learning_rate m

    (Nesterov: w <- w - learning_rate (momentum m + g + weight_decay w)), and at every
    inactive one m <- 0, w <- 0: what `neurrev_jax.sparse_transform` makes of
    `optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(...))` between two
    topology updates. Masks are inputs too, so that a topology update is another set of
    them: `tflite_export.trainer.with_masks`. The signature ``infer`` takes ``images``
    and the weights and statistics, and returns ``logits``.

    The model has run in LiteRT before it is returned, with gradients near those of JAX.

    Args:
      network: a Flax module whose `apply` takes images and ``train``.
      variables: ``params`` and, where it has batch norm, ``batch_stats``; float32. For
        a method with latent weights, those of `neurrev_jax.effective_params`.
      input_spec: shape [B, H, W, C] and type (float32) of a training batch.
      masks: mask tree of ``params``; None where all is dense. A leaf that is dense
        here stays so.
      momentum: in [0, 1).
      weight_decay: of every weight, biases and batch norm included; 0 or more.
      nesterov: whether the momentum is Nesterov's.
      infer_batch_size: B of the signature ``infer``; None for that of training.

    Returns:
      The model and the state to start from.

    Raises:
      ExportError: for values that make no sense, or a network of which something has
        no gradient in builtin operators; says what.
      VerificationError: if LiteRT's step differs from JAX's.
      MissingExtraError: if TensorFlow or LiteRT is not installed.
    """
    _check_settings(momentum, weight_decay, infer_batch_size)
    state = _initial_state(variables, masks)
    network = _plain(network)
    shape = tuple(input_spec.shape)
    if len(shape) != 4 or input_spec.dtype != np.float32:
        raise ExportError(
            f"input_spec is {input_spec.dtype}{list(shape)}; a training batch is "
            "float32 [B, H, W, C]: jax.ShapeDtypeStruct((32, 8, 8, 1), 'float32')."
        )

    def forward(params: Any, stats: Any, images: jax.Array) -> Any:
        given = {"params": params, "batch_stats": stats}
        logits, new = network.apply(given, images, train=True, mutable=["batch_stats"])
        return logits, new.get("batch_stats", {})

    step = Step(variables, momentum, weight_decay, nesterov)
    specs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in state.items()}
    train_specs = specs | {
        "images": jax.ShapeDtypeStruct(shape, np.float32),
        "labels": jax.ShapeDtypeStruct(shape[:1], np.int32),
        "learning_rate": jax.ShapeDtypeStruct((), np.float32),
    }
    infer_specs = {n: s for n, s in specs.items() if n.startswith((PARAMS, STATS))}
    infer_shape = (infer_batch_size or shape[0], *shape[1:])
    infer_specs["images"] = jax.ShapeDtypeStruct(infer_shape, np.float32)

    def infer(inputs: dict[str, Any]) -> dict[str, Any]:
        params, stats = step.trees(inputs)
        given = {"params": params, "batch_stats": stats}
        return {"logits": network.apply(given, inputs["images"])}

    num_classes = jax.eval_shape(infer, infer_specs)["logits"].shape[-1]
    model = _to_tflite(
        {
            "train": (step.of(with_builtin_gradients(forward)), train_specs),
            "infer": (infer, infer_specs),
        }
    )
    description = {
        "momentum": momentum,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "image_shape": shape,
        "num_classes": num_classes,
    }
    model = graph.with_metadata(model, DESCRIPTION, json.dumps(description))
    result = TrainableModel(model, state, description)
    _refuse_wrong_operators(result)
    _check(result, step.of(forward), train_specs)
    return result


def _check_settings(
    momentum: float, weight_decay: float, infer_batch_size: int | None
) -> None:
    if not 0 <= momentum < 1:
        raise ExportError(f"momentum={momentum!r} must lie in [0, 1); 0.9 is usual.")
    if not weight_decay >= 0:
        raise ExportError(f"weight_decay={weight_decay!r} must be 0 or more.")
    if infer_batch_size is not None and infer_batch_size < 1:
        raise ExportError(
            f"infer_batch_size={infer_batch_size!r} must be at least 1; leave it out "
            "for the batch size of training."
        )


def _initial_state(variables: Mapping[str, Any], masks: Any) -> State:
    # Feature maps that `init` left behind are results and no state.
    unknown = set(variables) - {"params", "batch_stats", ACTIVATIONS}
    if unknown or "params" not in variables:
        raise ExportError(
            f"variables has the collections {sorted(variables)}; a training step takes "
            "params and batch_stats, and knows of no others."
        )
    params = variables["params"]
    sparse = {}
    if masks is not None:
        try:
            params = neurrev_jax.apply_masks(params, masks)
        except ValueError as error:
            raise ExportError(f"masks do not fit params: {error}") from error
        sparse = {n: m for n, m in named(MASKS, masks).items() if np.ndim(m)}
    weights = named(PARAMS, params)
    arrays = {
        **weights,
        **named(STATS, variables.get("batch_stats", {})),
        **{
            MOMENTUM + name.removeprefix(PARAMS): np.zeros_like(weight)
            for name, weight in weights.items()
        },
        **sparse,
    }
    state = {name: np.array(array) for name, array in arrays.items()}
    for name, array in state.items():
        if not name.startswith(MASKS) and array.dtype != np.float32:
            raise ExportError(
                f"{name} is of type {array.dtype}; training on a device computes in "
                "float32, so convert it."
            )
    return state


def _plain(network: Any) -> Any:
    """The network with JAX's own convolutions, on one device."""
    changes = {
        name: None
        for name in ("convolution", "axis_name")
        if getattr(network, name, None) is not None
    }
    return network.clone(**changes) if changes else network


def _to_tflite(signatures: Mapping[str, tuple[Function, Specs]]) -> bytes:
    tf = import_tensorflow()
    # jax2tf itself imports TensorFlow, and says so if it is missing.
    from jax.experimental import jax2tf

    module = tf.Module()
    traced, names = {}, {}
    for key, (function, specs) in signatures.items():
        inputs, outputs = list(specs), list(jax.eval_shape(function, specs))
        names[key] = (inputs, outputs)

        def call(*arrays: Any, key: str = key) -> dict[str, Any]:
            inputs, outputs = names[key]
            arguments = dict(zip(inputs, arrays, strict=True))
            results = signatures[key][0](arguments)
            return {f"output_{i}": results[name] for i, name in enumerate(outputs)}

        # TensorFlow would change the slashes of the names; they are put in at the end.
        traced[key] = tf.function(
            jax2tf.convert(call, with_gradient=False),
            input_signature=[
                tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}")
                for i, spec in enumerate(specs.values())
            ],
            autograph=False,
        )
        setattr(module, key, traced[key])
    with tempfile.TemporaryDirectory() as directory, quiet():
        concrete = {key: f.get_concrete_function() for key, f in traced.items()}
        tf.saved_model.save(module, directory, signatures=concrete)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            directory, signature_keys=list(signatures)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        model = run_converter(converter)
    return _rename(model, names)


def _rename(model: bytes, names: Mapping[str, tuple[list[str], list[str]]]) -> bytes:
    """Gives the inputs and outputs of the signatures their names."""
    parsed = graph.parse(model)
    for signature in parsed.signatureDefs:
        inputs, outputs = names[signature.signatureKey.decode()]
        for entries, wanted in (
            (signature.inputs, inputs),
            (signature.outputs, outputs),
        ):
            for entry in entries:
                entry.name = wanted[int(entry.name.decode().rsplit("_", 1)[1])]
    return graph.pack(parsed)


def _number(entry: Any) -> int:
    return int(entry.name.decode().rsplit("_", 1)[1])


def _refuse_wrong_operators(model: TrainableModel) -> None:
    found = model.operators()["train"]
    if "TRANSPOSE_CONV" in found:
        raise ExportError(
            "the converted step has a TRANSPOSE_CONV, which LiteRT computes wrongly "
            "with explicit padding; use ordinary and depthwise convolutions only."
        )


def _check(model: TrainableModel, step: Function, specs: Specs) -> None:
    """Raises unless LiteRT's step is that of JAX, with JAX's own gradients."""
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = dict(model.state)
    inputs["images"] = rng.normal(size=specs["images"].shape).astype(np.float32)
    inputs["labels"] = rng.integers(
        model.description["num_classes"], size=specs["labels"].shape, dtype=np.int32
    )
    inputs["learning_rate"] = np.float32(0.1)
    runner = model.trainer()
    metrics = runner.step(inputs["images"], inputs["labels"], 0.1)
    if not np.isfinite(metrics.loss):
        raise VerificationError(
            f"LiteRT's first step has the loss {metrics.loss}; are the weights finite?",
            model,
        )
    compiled = jax.jit(step)
    wanted = compiled(inputs)
    gradients = [name for name in wanted if name.startswith(MOMENTUM)]
    negligible = _NEGLIGIBLE * _norm([_norm(wanted[name]) for name in gradients])
    rounding = 0.0
    for _ in range(_SAMPLES):
        noise = rng.uniform(-_ROUNDING, _ROUNDING, size=specs["images"].shape)
        images = inputs["images"] * (1 + noise).astype(np.float32)
        near = compiled(inputs | {"images": images})
        for name in gradients:
            moved = _distance(near[name], wanted[name])
            rounding = max(rounding, moved / (_norm(wanted[name]) + negligible))
    for name, array in runner.state.items():
        error = _distance(array, wanted[name])
        bound = (_TOLERANCE + _TIMES * rounding) * (_norm(wanted[name]) + negligible)
        if not error <= bound:
            raise VerificationError(
                f"LiteRT's first step differs from JAX's in {name}: by {error:.3g}, "
                f"and {bound:.3g} would be rounding. Something in the network converts "
                "to another function; leave it out, or train it elsewhere.",
                model,
            )


def _norm(array: Any) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def _distance(a: Any, b: Any) -> float:
    return _norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
