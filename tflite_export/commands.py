"""What the commands do. Each takes the parsed arguments and returns the exit code.

They raise `ExportError` for a request that cannot be met and `VerificationError` for a
model that fails its check; `tflite_export.__main__` says both in one sentence.
"""

import argparse
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from tflite_export import android, cluster, conversion, latency, report, verification
from tflite_export import graph as graph_lib
from tflite_export.errors import ExportError, VerificationError
from tflite_export.exported import Exported, write_file
from tflite_export.runs import Run, open_run
from tflite_export.variants import make_variants

METADATA = "neurrev_jax"
"""Under which name a model holds what it is."""

# Training images that scales for 8 bits are taken from.
_CALIBRATION = 128


def convert(options: argparse.Namespace, console: Console) -> int:
    """Writes the model of a run, if it passes its check."""
    run = open_run(options.workdir, options.method)
    console.print(_title(run), soft_wrap=True)
    sparse = options.sparse
    if sparse is None:
        sparse = options.precision in ("float32", "float16")
    form = {"precision": options.precision, "rewrite": options.rewrite}
    images, labels, is_whole = _examples(run, options.data)
    try:
        exported = _export(run, options.batch_size, sparse=sparse, **form)
        found = _check(run, exported, images, labels)
    except VerificationError as error:
        _keep_failed(options, error.exported, console)
        raise
    report.show_verification(found, _form(exported), is_whole, console)
    if not found.passed:
        _keep_failed(options, exported, console)
        raise VerificationError(f"{options.out} is not written: {found.problems[0]}")
    sizes = {}
    if sparse:
        dense = _export(run, options.batch_size, sparse=False, **form)
        sizes["dense"] = (dense.size, dense.gzipped_size)
    sizes["sparse" if sparse else "dense"] = (exported.size, exported.gzipped_size)
    report.show_sizes(sizes, console)
    report.show_channels(exported, console)
    report.show_placement(_placement(exported.model), console)
    path = exported.write(options.out)
    console.print(f"wrote {path}", soft_wrap=True)
    return 0


def _keep_failed(options: argparse.Namespace, exported: Any, console: Console) -> None:
    if not options.keep_failed or exported is None:
        return
    path = options.out.with_suffix(f".failed{options.out.suffix or '.tflite'}")
    console.print(f"wrote the failed model to {exported.write(path)}", soft_wrap=True)


def verify(options: argparse.Namespace, console: Console) -> int:
    """Checks a written model against its run."""
    run = open_run(options.workdir, options.method)
    exported = load(_read(options.model), run, options.model)
    images, labels, is_whole = _examples(run, options.data)
    found = _check(run, exported, images, labels)
    report.show_verification(found, str(options.model), is_whole, console)
    report.show_sizes({"file": (found.size, found.gzipped_size)}, console)
    if not found.passed:
        raise VerificationError(f"{options.model}: {found.problems[0]}")
    return 0


def inspect(options: argparse.Namespace, console: Console) -> int:
    """Says what is in a model."""
    model = _read(options.model)
    graph = graph_lib.read(model)
    report.show_metadata(graph, METADATA, console)
    compressed = len(gzip.compress(model, mtime=0))
    report.show_model(graph, len(model), compressed, console)
    return 0


def benchmark(options: argparse.Namespace, console: Console) -> int:
    """Times several forms of a model on this machine."""
    if (options.workdir is None) == (options.models is None):
        raise ExportError("give either --workdir of a run or --models, and not both.")
    threads = _numbers(options.threads)
    if options.workdir is not None:
        models, inputs = _variants(options, console)
    else:
        models = {path.stem: _read(path) for path in options.models}
        inputs = None
    graphs = {name: graph_lib.read(model) for name, model in models.items()}
    if inputs is None:
        inputs = _random_inputs(graphs)
    timings = latency.measure(models, inputs, threads=threads, runs=options.runs)
    sizes = {
        name: (len(model), len(gzip.compress(model, mtime=0)))
        for name, model in models.items()
    }
    rows = report.timing_rows(timings, graphs, sizes)
    report.show_timings(rows, options.runs, console)
    if options.out is not None:
        write_file(options.out, _as_csv(rows).encode())
        console.print(f"wrote {options.out}", soft_wrap=True)
    return 0


def android_write(options: argparse.Namespace, console: Console) -> int:
    """Writes what is needed to time models on a phone."""
    threads = _numbers(options.threads)
    models, _ = _variants(options, console)
    with tempfile.TemporaryDirectory() as place:
        paths = {}
        for name, model in models.items():
            paths[name] = write_file(Path(place) / f"{name}.tflite", model)
        script = android.write(
            options.out,
            paths,
            benchmark_model=options.benchmark_model,
            threads=threads,
            runs=options.runs,
        )
    console.print(
        f"wrote {len(models)} models and {script}; {script.parent / 'README.md'} says "
        "how to go on",
        soft_wrap=True,
    )
    return 0


def android_parse(options: argparse.Namespace, console: Console) -> int:
    """Reads what the phone said."""
    found = android.parse(options.directory)
    console.print(found.markdown(), soft_wrap=True, markup=False, highlight=False)
    for path in found.write():
        console.print(f"wrote {path}", soft_wrap=True)
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [int(count) for count in text.split(",")]
    except ValueError as error:
        raise ExportError(
            f"--threads={text} must be whole numbers with commas, as 1,2."
        ) from error


def _variants(
    options: argparse.Namespace, console: Console
) -> tuple[dict[str, bytes], list[np.ndarray]]:
    run = open_run(options.workdir, options.method)
    console.print(_title(run), soft_wrap=True)
    exported = make_variants(
        run.apply,
        run.params,
        _spec(run, 1),
        options.variants.split(","),
        run.batches(run.train_images[:_CALIBRATION], 1),
    )
    inputs = [next(run.batches(run.test_images, 1))]
    return {name: form.model for name, form in exported.items()}, inputs


def _export(run: Run, batch_size: int, **form: Any) -> Exported:
    if batch_size < 1:
        raise ExportError(f"--batch_size={batch_size} must be at least 1.")
    samples = None
    if form["precision"] == "int8":
        samples = run.batches(run.train_images[: _CALIBRATION * batch_size], batch_size)
    exported = conversion.convert(
        run.apply,
        run.params,
        _spec(run, batch_size),
        representative_data=samples,
        **form,
    )
    return exported.with_model(
        graph_lib.with_metadata(
            exported.model,
            METADATA,
            json.dumps({**run.description, "export": form}, indent=1),
        )
    )


def load(model: bytes, run: Run, path: Path) -> Exported:
    """A written model, with the function that it was converted from.

    Args:
      model: contents of the file.
      run: that it was converted from.
      path: of the file, for messages.

    Returns:
      What `convert` returned for it.

    Raises:
      ExportError: if it is not a model of such a network.
    """
    graph = graph_lib.read(model)
    text = graph.metadata.get(METADATA)
    if text is None:
        raise ExportError(
            f"{path} does not say what it is; `verify` checks models that `convert` of "
            "this command wrote."
        )
    said = json.loads(text)
    if said["model"] != run.description["model"]:
        raise ExportError(
            f"{path} holds a network {said['model']}, and the run in {run.directory} "
            f"trained {run.description['model']}; give the --workdir it comes from."
        )
    batch_size = graph.tensors[graph.inputs[0]].shape[0]
    return Exported(
        model=model,
        inputs=(_spec(run, batch_size),),
        reference=jax.jit(lambda images: run.apply(run.params, images)),
        weights=conversion.weights_by_path(run.params),
        **said["export"],
    )


def _check(
    run: Run, exported: Exported, images: np.ndarray, labels: np.ndarray
) -> verification.Verification:
    size = exported.inputs[0].shape[0]
    if len(images) < size:
        raise ExportError(
            f"there are {len(images)} examples to check with, fewer than a batch of "
            f"{size}; lower --batch_size or give more with --data."
        )
    count = len(images) // size * size
    return verification.verify(exported, run.batches(images, size), labels[:count])


def _examples(run: Run, data: Path | None) -> tuple[np.ndarray, np.ndarray, bool]:
    if data is None:
        return run.test_images, run.test_labels, run.has_whole_test_set
    try:
        with data.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"--data={data} cannot be read ({error}); it has to be an archive written "
            "by numpy.savez with images and labels."
        ) from error
    if images.shape[1:] != run.input_shape or labels.shape != images.shape[:1]:
        raise ExportError(
            f"--data={data} has images of shape {images.shape} and labels of shape "
            f"{labels.shape}; the network takes [N, "
            f"{', '.join(map(str, run.input_shape))}] and a label for each."
        )
    return images, labels, False


def _placement(model: bytes) -> Any:
    return cluster.place(graph_lib.read(model))


def _random_inputs(graphs: dict[str, graph_lib.Graph]) -> list[np.ndarray]:
    forms = {
        tuple((g.tensors[i].shape, str(g.tensors[i].dtype)) for i in g.inputs)
        for g in graphs.values()
    }
    if len(forms) > 1:
        raise ExportError(
            f"the models take different inputs ({' and '.join(map(str, forms))}); "
            "compare models of one network."
        )
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape, dtype in forms.pop()]


def _spec(run: Run, batch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *run.input_shape), np.float32)


def _title(run: Run) -> str:
    training = run.description["training"]
    return (
        f"{run.directory}: {run.description['model']['class']} for {training['data']}, "
        f"trained by {training['method']} at {training['sparsity']:.2%} sparsity, "
        f"step {training['step']}"
    )


def _form(exported: Exported) -> str:
    storage = "sparse" if exported.sparse else "dense"
    rewritten = "" if exported.rewrite == "none" else f", {exported.rewrite} rewrite"
    return f"{exported.precision}, {storage} storage{rewritten}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read ({error.strerror}); give a .tflite file."
        ) from error


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = [*rows[0], "low_ms", "high_ms"]
    columns.remove("quartiles_ms")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        low, high = row["quartiles_ms"]
        flat = {key: value for key, value in row.items() if key != "quartiles_ms"}
        flat |= {"low_ms": low, "high_ms": high}
        writer.writerow(
            {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in flat.items()}
        )
    return text.getvalue()
