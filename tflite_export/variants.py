"""One network in several forms, to compare them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from tflite_export.conversion import convert
from tflite_export.errors import ExportError
from tflite_export.exported import Exported

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {"sparse": False},
    "sparse": {},
    "shift": {"rewrite": "shift"},
    "float16": {"precision": "float16", "sparse": False},
    "float16_sparse": {"precision": "float16"},
    "float16_shift": {"precision": "float16", "rewrite": "shift"},
    "int8": {"precision": "int8", "sparse": False},
    "dynamic_int8": {"precision": "dynamic_int8", "sparse": False},
}
"""What each is called, and the arguments of `convert` that make it."""


def make_variants(
    apply_fn: Callable[..., Any],
    params: Any,
    input_spec: jax.ShapeDtypeStruct,
    names: Sequence[str],
    representative_data: Iterable[Any] = (),
) -> dict[str, Exported]:
    """Converts one network in several ways.

    Args:
      apply_fn: ``apply_fn(params, input)``.
      params: its weights, zero where they are inactive.
      input_spec: shape and type of the input.
      names: keys of `VARIANTS`.
      representative_data: typical inputs, for ``"int8"``.

    Returns:
      The models by name, in the order of the names.

    Raises:
      ExportError: for an unknown name, or what `convert` raises.
    """
    samples = list(representative_data)
    models = {}
    for name in names:
        if name not in VARIANTS:
            listed = ", ".join(VARIANTS)
            raise ExportError(f"there is no variant {name!r}; choose from {listed}.")
        options = dict(VARIANTS[name])
        if options.get("precision") == "int8":
            options["representative_data"] = samples
        models[name] = convert(apply_fn, params, input_spec, **options)
    return models
