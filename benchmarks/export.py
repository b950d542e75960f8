"""Sizes and latencies of exported networks, sparse beside dense.

Run it with

    python -m benchmarks.export [--networks=resnet32,resnet50,mobilenet] [--csv=FILE]

on a quiet machine; it takes about ten minutes. Networks have random weights under
random masks (ERK): neither size nor latency depends on what was learned, only on where
zeros are. The models of one network take turns in LiteRT, one inference each, on one
thread; a figure is the median. They are timed twice: as they run on this machine, and
(on x86) with XNNPACK's AVX kernels hidden, see `benchmarks.sse`.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import neurrev_jax
import tflite_export
from neurrev_jax import models
from tflite_export import cluster, latency

SPARSITIES = (0.0, 0.8, 0.9, 0.95, 0.98)
NETWORKS = {
    "resnet32": (models.resnet32(10), (1, 32, 32, 3)),
    "resnet50": (models.resnet50(1000), (1, 224, 224, 3)),
    "mobilenet": (models.mobilenet_v1(1000), (1, 224, 224, 3)),
}
# Forms beside float32; of ResNet-50, scales for 8 bits alone would take minutes.
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "resnet32": (
        {},
        {"rewrite": "shift"},
        {"precision": "float16"},
        {"precision": "int8", "sparse": False},
    ),
    "resnet50": ({}, {"precision": "float16"}),
    "mobilenet": ({}, {"precision": "float16"}, {"precision": "int8", "sparse": False}),
}


_WITHOUT_AVX = """
import json, pathlib, sys
from benchmarks import export, sse
sse.hide_avx()
files = [pathlib.Path(file) for file in sys.argv[2:]]
print(json.dumps(export.time_all(files, int(sys.argv[1]))))
"""


def build(name: str, sparsity: float) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
    """A network with random weights and masks, as `convert` takes it."""
    network, shape = NETWORKS[name]
    init = jax.jit(
        lambda: network.init(jax.random.key(0), jnp.zeros(shape)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    variables = init()
    params, stats = variables["params"], variables["batch_stats"]
    if sparsity:
        tx = neurrev_jax.sparse_transform(optax.sgd(0.1), sparsity=sparsity)
        params = neurrev_jax.sparsify(params, tx.init(params))

    def apply(params: Any, images: jax.Array) -> Any:
        return network.apply({"params": params, "batch_stats": stats}, images)

    return apply, params, jax.ShapeDtypeStruct(shape, np.float32)


def label(form: dict[str, Any]) -> str:
    """What a form is called in the table."""
    precision = form.get("precision", "float32")
    return "shift" if form.get("rewrite") == "shift" else precision


def convert_all(name: str, directory: pathlib.Path) -> list[dict[str, Any]]:
    """Writes every model of a network; one row of the table for each."""
    rows = []
    rng = np.random.default_rng(0)
    for sparsity in SPARSITIES:
        apply, params, spec = build(name, sparsity)
        for form in FORMS[name]:
            options = {"sparse": sparsity > 0, **form}
            if options.get("precision") == "int8":
                options["representative_data"] = [
                    rng.normal(size=spec.shape) for _ in range(4)
                ]
            row: dict[str, Any] = {
                "network": name,
                "sparsity": sparsity,
                "form": label(form),
            }
            try:
                exported = tflite_export.convert(apply, params, spec, **options)
            except tflite_export.VerificationError as error:
                print(f"{row}: {error}", flush=True)
                continue
            placed = cluster.place(exported.graph)
            row["size"] = exported.size
            row["gzipped"] = exported.gzipped_size
            row["multiply_adds"] = sum(p.layer.multiply_adds for p in placed)
            row["multiply_adds_on_arm"] = sum(p.multiply_adds for p in placed)
            row["file"] = f"{name}-{sparsity}-{label(form)}.tflite"
            exported.write(directory / row["file"])
            rows.append(row)
            print(row, flush=True)
    return rows


def time_all(files: list[pathlib.Path], runs: int) -> dict[str, Any]:
    """Median and quartiles in ms of each model, by file."""
    contents = {path.name: path.read_bytes() for path in files}
    shape = NETWORKS[files[0].name.split("-")[0]][1]
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    timings = latency.measure(contents, [image], runs=runs)
    return {t.name: (t.median, *t.quartiles) for t in timings}


def time_without_avx(files: list[pathlib.Path], runs: int) -> dict[str, Any]:
    """The same in a process of its own, whose XNNPACK has only SSE."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_AVX, str(runs), *map(str, files)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--csv", type=pathlib.Path)
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as place:
        directory = pathlib.Path(place)
        for name in options.networks.split(","):
            rows = convert_all(name, directory)
            files = [directory / row.pop("file") for row in rows]
            here = time_all(files, options.runs)
            hidden = {}
            if not latency.computes_sparsely():
                hidden = time_without_avx(files, options.runs)
            for row, file in zip(rows, files, strict=True):
                for prefix, times in (("", here), ("sse_", hidden)):
                    if times:
                        middle, low, high = times[file.name]
                        row[f"{prefix}ms"] = round(middle, 3)
                        row[f"{prefix}low_ms"] = round(low, 3)
                        row[f"{prefix}high_ms"] = round(high, 3)
            table += rows
            for row in rows:
                print(row, flush=True)
    print(latency.host())
    if options.csv:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
