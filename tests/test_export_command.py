"""From a run's directory to a checked model, by the command line."""

import csv
import io
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import methods, networks, rn_digits
from experiments.data import digits
from experiments.training import feeds, network_file, state
from tflite_export import __main__ as command
from tflite_export import commands, errors, graph, latency, runs, verification

pytestmark = [pytest.mark.xdist_group("export"), pytest.mark.loose_numerics]

METHODS = ("neurrev", "static")
SAMPLES = pathlib.Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a run leaves of two methods before the first step."""
    directory = tmp_path_factory.mktemp("run")
    config = rn_digits.get_config()
    config.model.stage_sizes, config.model.widths = (1, 1), (8, 16)
    config.dormant.examples = 128
    data = digits.load(0.25)
    plan = config_lib.plan(config, data.info.train_examples)
    feed = feeds.MemoryFeed(config, data)
    network = networks.make_network(config.model, 10, state.AXIS)
    sample = np.zeros((1, 8, 8, 1), np.float32)
    for seed, method in enumerate(METHODS):
        with config.unlocked():
            config.method.name = method
        arm = methods.make_arm(config, plan)
        start = state.compile_init(network, arm, sample, seed)
        (directory / method).mkdir()
        path = directory / method / network_file.NETWORK
        network_file.NetworkFile(path, config, data.info, network, arm).write(start)
    examples = network_file.read_examples(feed)
    network_file.write_examples(directory / network_file.EXAMPLES, examples)
    with config.unlocked():
        config.method.name = "static"
    (directory / "config.json").write_text(config_lib.to_json(config))
    return directory


def call(capsys, *arguments):
    """(exit code, output, errors) of the command, in this process."""
    code = command.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    # The terminal's width is no part of what is said.
    return code, " ".join(out.split()), " ".join(err.split())


def test_a_run_says_what_it_holds(workdir):
    run = runs.open_run(workdir, "neurrev")
    assert type(run.network).__name__ == "ResNet"
    assert run.network.widths == (8, 16)
    assert run.description["classes"] == list("0123456789")
    assert run.description["training"]["method"] == "neurrev"
    assert run.has_whole_test_set
    assert run.test_images.shape == (450, 8, 8, 1)
    assert run.test_images.dtype == np.uint8
    # As the training set lies in memory, from its beginning.
    expected = digits.load(0.25)
    np.testing.assert_array_equal(run.test_images, expected.test.images)
    np.testing.assert_array_equal(run.test_labels, expected.test.labels)
    np.testing.assert_array_equal(run.train_images, expected.train.images[:128])
    normalized = run.normalize(run.train_images)
    assert normalized.dtype == np.float32
    assert abs(float(normalized.mean())) < 0.1
    kernel = run.params["stage_2"]["block_1"]["conv_2"]["kernel"]
    assert 0.5 < np.mean(kernel == 0) < 1


def test_the_method_of_the_config_is_taken_unless_one_is_named(workdir):
    assert runs.open_run(workdir).directory.name == "static"
    assert runs.open_run(workdir, "neurrev").directory.name == "neurrev"
    assert runs.open_run(workdir / "neurrev").directory.name == "neurrev"


def test_a_model_is_converted_checked_and_says_what_it_is(workdir, tmp_path, capsys):
    out = tmp_path / "deep" / "model.tflite"
    code, text, err = call(capsys, "convert", "--workdir", workdir, "--out", out)
    assert (code, err) == (0, "")
    assert "450 inputs in LiteRT and in JAX" in text
    assert "same class as JAX: 100.00%" in text
    assert "(the test set, 450 inputs)" in text
    assert "kept exactly in 7 of 7 tensors" in text
    assert "dense" in text and "gzipped" in text
    assert f"wrote {out}" in text
    said = json.loads(graph.read(out.read_bytes()).metadata[commands.METADATA])
    assert said["classes"][3] == "3"
    assert said["preprocessing"]["mean"] == pytest.approx([4.88], abs=0.01)
    assert said["export"] == {
        "precision": "float32",
        "rewrite": "none",
        "sparse": True,
    }

    code, text, err = call(capsys, "verify", "--workdir", workdir, "--model", out)
    assert (code, err) == (0, "")
    assert "same class as JAX: 100.00%" in text

    code, text, err = call(capsys, "inspect", out)
    assert (code, err) == (0, "")
    for shown in ("stage_2/block_1/conv_1", "DENSIFY", "3x3 convolution", "classes"):
        assert shown in text

    # Another network's weights: the same file is not the model of that run.
    code, text, err = call(
        capsys, "verify", "--workdir", workdir, "--method=neurrev", "--model", out
    )
    assert code == command.FAILED_CHECK
    assert "differs from JAX" in err


def test_batches_and_own_data(workdir, tmp_path, capsys):
    out, data = tmp_path / "model.tflite", tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (10, 8, 8, 1)).astype(np.uint8)
    np.savez(data, images=images, labels=np.arange(10))
    flags = ["--out", out, "--batch_size=4", "--data", data, "--no-sparse"]
    code, text, err = call(capsys, "convert", "--workdir", workdir, *flags)
    assert (code, err) == (0, "")
    assert "part of the test set, 8 inputs" in text or "2 inputs in LiteRT" in text
    assert graph.read(out.read_bytes()).tensors[0].shape == (4, 8, 8, 1)


def test_a_model_that_fails_is_not_written(workdir, tmp_path, capsys, monkeypatch):
    # No float16 network is that near.
    monkeypatch.setitem(verification.TOLERANCES, "float16", 1e-9)
    out = tmp_path / "model.tflite"
    flags = ["--workdir", workdir, "--out", out, "--precision=float16"]
    code, _, err = call(capsys, "convert", *flags)
    assert code == command.FAILED_CHECK
    assert "differs from JAX" in err
    assert list(tmp_path.iterdir()) == []
    code, text, _ = call(capsys, "convert", *flags, "--keep_failed")
    assert code == command.FAILED_CHECK
    (written,) = tmp_path.iterdir()
    assert written.name == "model.failed.tflite"
    assert str(written.name) in text.replace(" ", "")


def test_models_are_timed_beside_one_another(workdir, tmp_path, capsys):
    table = tmp_path / "times.csv"
    flags = ["--threads=1,2", "--runs=3", "--variants=dense,shift,int8", "--out", table]
    code, text, err = call(capsys, "benchmark", "--workdir", workdir, *flags)
    assert (code, err) == (0, "")
    assert ("never computes sparsely" in text) != latency.computes_sparsely()
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(r["variant"], r["threads"]) for r in rows] == [
        (variant, threads) for threads in "12" for variant in ("dense", "shift", "int8")
    ]
    for row in rows:
        assert 0 < float(row["fastest_ms"]) <= float(row["median_ms"])
        assert float(row["low_ms"]) <= float(row["median_ms"]) <= float(row["high_ms"])
    by_name = {row["variant"]: row for row in rows}
    on_arm = {n: int(row["multiply_adds_on_arm"]) for n, row in by_name.items()}
    assert on_arm["dense"] == on_arm["int8"] == int(by_name["dense"]["multiply_adds"])
    assert on_arm["shift"] < int(by_name["shift"]["multiply_adds"])


def test_what_a_phone_needs_is_written_and_what_it_said_is_read(
    workdir, tmp_path, capsys
):
    out = tmp_path / "phone"
    flags = ["--workdir", workdir, "--out", out, "--variants=dense,sparse"]
    code, text, err = call(capsys, "android", "write", *flags)
    assert (code, err) == (0, "")
    assert "wrote 2 models" in text
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert names == {"README.md", "run.sh", "dense.tflite", "sparse.tflite"}

    code, _, err = call(capsys, "android", "parse", out)
    assert code == command.USAGE
    assert "no results" in err
    (out / "results").mkdir()
    shutil.copy(
        SAMPLES / "benchmark_model_cpu.txt", out / "results" / "dense.cpu.2.txt"
    )
    code, text, err = call(capsys, "android", "parse", out)
    assert (code, err) == (0, "")
    assert "| dense | cpu | 2 |" in text
    assert (out / "report.csv").exists() and (out / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "--workdir=nowhere", "--out=x"], "not a directory"),
        (["convert", "--workdir={empty}", "--out=x"], "holds no network.msgpack"),
        (["convert", "--workdir={run}", "--method=rigl", "--out=x"], "'neurrev', 'st"),
        (["convert", "--workdir={run}/static", "--method=set", "--out=x"], "not of"),
        (["convert", "--workdir={run}", "--out=x", "--batch_size=0"], "at least 1"),
        (["convert", "--workdir={run}", "--out=x", "--batch_size=500"], "lower --bat"),
        (["convert", "--workdir={run}", "--out=x", "--data=none.npz"], "cannot be rea"),
        (
            ["convert", "--workdir={run}", "--out=x", "--precision=int8", "--sparse",
             "--rewrite=shift"],
            "gains nothing",
        ),
        (["convert", "--workdir={run}", "--out=/dev/null/x"], "cannot write"),
        (["verify", "--workdir={run}", "--model=none"], "cannot be read"),
        (["inspect", "setup.py"], "not a .tflite model"),
        (["benchmark"], "either --workdir of a run or --models"),
        (["benchmark", "--workdir={run}", "--threads=x"], "whole numbers"),
        (["benchmark", "--workdir={run}", "--variants=tiny"], "no variant 'tiny'"),
        (["benchmark", "--workdir={run}", "--variants=dense", "--runs=0"], "at least"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(workdir, tmp_path, capsys, arguments, message):
    filled = [a.format(run=workdir, empty=tmp_path) for a in arguments]
    code, _, err = call(capsys, *filled)
    assert code == command.USAGE
    assert message in err


@pytest.mark.parametrize("file", ["static/network.msgpack", "examples.npz"])
def test_damaged_files_are_named(workdir, file):
    path = workdir / file
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(errors.ExportError, match="is damaged"):
            runs.open_run(workdir)
        path.unlink()
        with pytest.raises(errors.ExportError):
            runs.open_run(workdir / "static")
    finally:
        path.write_bytes(whole)


def test_the_weights_of_a_masked_state_are_the_effective_ones(workdir):
    run = runs.open_run(workdir)
    images = run.normalize(run.test_images[:4])
    logits = run.apply(run.params, images)
    assert logits.shape == (4, 10)
    assert bool(jax.numpy.isfinite(logits).all())


WITHOUT_THE_EXTRA = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "ai_edge_litert", "flatbuffers"}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
from tflite_export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_the_command_that_installs_it_is_named(workdir, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_THE_EXTRA, "convert"),
            *(f"--workdir={workdir}", f"--out={tmp_path / 'x'}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == command.USAGE
    assert "pip install 'neurrev_jax[export]'" in done.stderr
    assert "Traceback" not in done.stderr
