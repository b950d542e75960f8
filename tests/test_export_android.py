"""The script runs models on a phone through adb, and the report reads what comes back.

The phone is a directory and adb a shell script that copies into it and runs there.
"""

import csv
import dataclasses
import io
import pathlib
import subprocess
import sys

import pytest

from tflite_export import ExportError, android
from tflite_export.android_report import parse_output

DATA = pathlib.Path(__file__).parent / "data"

# What adb does with a phone whose storage is the directory $PHONE.
ADB = """#!/bin/sh
printf '%s|%s\\n' "${ANDROID_SERIAL:-}" "$*" >>"$PHONE.calls"
command=$1
shift
case $command in
    devices) printf 'List of devices attached\\n'; cat "$PHONE.devices"; printf '\\n' ;;
    push)
        [ ! -f "$PHONE.full" ] || { echo 'adb: error: no space left' >&2; exit 1; }
        cp "$1" "$PHONE$2" ;;
    shell)
        case $1 in *./benchmark_model*)
            if [ -f "$PHONE.unplug" ]; then
                rm "$PHONE.unplug"
                echo 'INFO: STARTING!'
                exit 255
            fi ;;
        esac
        getprop() { echo "value of $1"; }
        eval "$(printf '%s' "$1" | sed "s#/data/local/tmp#$PHONE/data/local/tmp#g")" ;;
esac
"""

# What Google's program does, but for the computation.
BENCHMARK_MODEL = """#!/bin/sh
set -eu
[ -f "${1#--graph=}" ] || { echo 'ERROR: Failed to mmap model'; exit 1; }
case "$*" in
    *shift*use_gpu=true*) cat "$DATA/benchmark_model_gpu_failed.txt"; exit 1 ;;
    *use_gpu=true*) cat "$DATA/benchmark_model_gpu.txt" ;;
    *) cat "$DATA/benchmark_model_cpu.txt" ;;
esac
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """A directory that serves as a phone, connected; and adb on the path."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "adb").write_text(ADB)
    (tools / "adb").chmod(0o755)
    root = tmp_path / "phone"
    (root / "data" / "local" / "tmp").mkdir(parents=True)
    connect(root, "PIXEL\tdevice")
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("PHONE", str(root))
    monkeypatch.setenv("DATA", str(DATA))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return root


@pytest.fixture
def written(tmp_path):
    for name in ("sparse", "shift"):
        (tmp_path / f"{name}_model.tflite").write_bytes(name.encode())
    (tmp_path / "program").write_text(BENCHMARK_MODEL)
    models = {n: tmp_path / f"{n}_model.tflite" for n in ("sparse", "shift")}
    script = android.write(
        tmp_path / "on_phone",
        models,
        benchmark_model=tmp_path / "program",
        threads=(1, 2),
    )
    return script.parent


def connect(phone, *lines):
    pathlib.Path(f"{phone}.devices").write_text("".join(f"{line}\n" for line in lines))


def flag(phone, name):
    pathlib.Path(f"{phone}.{name}").touch()


def calls(phone):
    path = pathlib.Path(f"{phone}.calls")
    return path.read_text().splitlines() if path.exists() else []


def run(directory, *arguments):
    return subprocess.run(
        ["sh", str(directory / "run.sh"), "--pause=0", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def sample(name, backend="cpu", threads=1, end=None):
    text = (DATA / f"benchmark_model_{name}.txt").read_text()
    return parse_output(text[:end], "model", backend, threads)


# --- reading outputs ------------------------------------------------------------------


def test_the_output_of_a_cpu_run_is_read_whole():
    read = sample("cpu", threads=2)
    assert dataclasses.asdict(read) | {"top": None} == {
        "variant": "model",
        "backend": "cpu",
        "threads": 2,
        "status": None,
        "init_ms": 8.217,
        "first_ms": 9.12,
        "warmup_ms": 4.7025,
        "mean_ms": 4.5124,
        "min_ms": 4.391,
        "max_ms": 5.903,
        "std_ms": 0.121,
        "runs": 221,
        "init_mb": 6.48047,
        "memory_mb": 9.19141,
        "model_mb": 1.7043,
        "delegated": 32,
        "nodes": 32,
        "partitions": 1,
        "delegate": "completely",
        "top": None,
        "errors": (),
    }
    # The longest of inference, not of loading; at most five of the six.
    assert [op.kind for op in read.top] == [
        "SPMM (NCHW, F32) GEMM",
        "SPMM (NCHW, F32) GEMM",
        "Depthwise Convolution (NCHW, F32)",
        "Convolution (NHWC, F32) IGEMM",
        "Fully Connected (NC, F32) GEMM",
    ]
    assert (read.top[0].milliseconds, read.top[0].percent) == (1.83, 41.216)
    assert read.succeeded


def test_outputs_of_older_versions_are_read_too():
    read = sample("cpu_2020")
    assert (read.mean_ms, read.runs, read.std_ms) == (9.65531, 103, 0.139)
    assert (read.delegated, read.nodes, read.partitions) == (33, None, 3)
    assert read.delegate == "partially"
    assert read.top[0].kind == "TfLiteXNNPackDelegate"
    assert read.top[0].milliseconds == 7.004


def test_a_partly_delegated_gpu_run_tells_what_stays_behind():
    read = sample("gpu", "gpu")
    assert (read.delegated, read.nodes, read.delegate) == (31, 32, "partially")
    assert read.init_ms == 412.385
    assert "ARG_MAX: Operation is not supported." in read.errors
    assert read.succeeded, "what stays behind is no failure"


def test_a_gpu_that_does_not_start_is_a_failure():
    read = sample("gpu_failed", "gpu")
    assert not read.succeeded
    assert read.mean_ms is None
    assert "Failed to apply GPU delegate." in read.errors
    assert "Benchmarking failed." in read.errors


def test_a_gpu_that_computes_nothing_is_said():
    text = (DATA / "benchmark_model_gpu.txt").read_text()
    start, rest = text.split("INFO: Explicitly applied")
    line = (
        "INFO: Though GPU delegate is explicitly applied, the model graph will not be"
        " executed by the delegate."
    )
    text = start + line + rest[rest.index("\n") :]
    read = parse_output(text, "model", "gpu", 1)
    assert read.delegate == "not"
    assert any("the times are the CPU's" in error for error in read.errors)


@pytest.mark.parametrize("end", [0, 100, 900, 1500, 2000, 3000, 4000, 5000])
def test_an_output_that_breaks_off_is_read_as_far_as_it_goes(end):
    read = sample("cpu", end=end)
    whole = sample("cpu")
    assert read.mean_ms is not None or read.errors
    assert read.top == whole.top[: len(read.top)]


def test_an_exit_status_without_words_is_an_error():
    read = parse_output("exit status: 137\n", "model", "cpu", 1)
    assert read.status == 137
    assert read.errors == ("benchmark_model ended with the exit status 137",)
    assert not read.succeeded


# --- the script -----------------------------------------------------------------------


def test_the_script_is_plain_posix_sh(written):
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", str(written / "run.sh")], check=True)
    script = (written / "run.sh").read_text()
    assert script.startswith("#!/bin/sh\n")
    assert "@" not in script, "a placeholder is left"
    for bashism in ("[[ ", "local ", "function ", "<<<", "pipefail", "$'"):
        assert bashism not in script, bashism
    assert (written / "run.sh").stat().st_mode & 0o111


def test_the_page_names_the_models_and_asks_for_googles_program(written):
    page = (written / "README.md").read_text()
    assert "| sparse | `models/sparse.tflite` | 6 |" in page
    assert "android_aarch64_benchmark_model" in page
    assert "with 1, 2 threads" in page
    assert "@" not in page


def test_from_script_to_report(written, phone):
    result = run(written)
    assert result.returncode == 0, result.stderr
    made = sorted(path.name for path in (written / "results").iterdir())
    assert made == [
        "device.txt",
        "shift.cpu.1.txt",
        "shift.cpu.2.txt",
        "shift.gpu.1.txt",
        "sparse.cpu.1.txt",
        "sparse.cpu.2.txt",
        "sparse.gpu.1.txt",
    ]
    ran = [call for call in calls(phone) if "./benchmark_model" in call]
    assert len(ran) == 6
    assert all(call.startswith("PIXEL|") for call in ran)
    assert "--graph=sparse.tflite --num_threads=1 --num_runs=50" in ran[0]
    assert "--enable_op_profiling=true --use_xnnpack=true" in ran[0]
    assert "--use_gpu=true" in ran[-1]
    # Models take turns.
    assert ["shift" in call for call in ran] == [False, True] * 3
    assert not list((phone / "data" / "local" / "tmp").iterdir()), "left on the phone"

    report = android.parse(written)
    assert report.device["serial"] == "PIXEL"
    assert report.device["ro.product.model"] == "value of ro.product.model"
    assert [(r.variant, r.backend, r.threads) for r in report.runs] == [
        ("shift", "cpu", 1),
        ("shift", "cpu", 2),
        ("shift", "gpu", 1),
        ("sparse", "cpu", 1),
        ("sparse", "cpu", 2),
        ("sparse", "gpu", 1),
    ]
    failed = report.runs[2]
    assert (failed.status, failed.succeeded) == (1, False)
    assert [r.status for r in report.runs if r is not failed] == [0] * 5

    table, page = report.write()
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert rows[0]["mean_ms"] == "4.5124"
    assert rows[0]["delegated"] == rows[0]["nodes"] == "32"
    assert rows[2]["mean_ms"] == ""
    assert "Failed to apply GPU delegate." in rows[2]["errors"]
    assert "SPMM (NCHW, F32) GEMM" in rows[3]["top"]
    text = page.read_text()
    assert (
        "| sparse | cpu | 2 | 4.51 ± 0.121 | 4.39 | 5.9 | 9.12 | 8.22 | 221 |" in text
    )
    assert "| shift | gpu | 1 | failed | - |" in text
    assert "- shift, gpu, 1 threads: Failed to apply GPU delegate." in text
    assert "- ro.product.cpu.abi: value of" in text


def test_a_stopped_script_goes_on_where_it_was(written, phone):
    flag(phone, "unplug")
    result = run(written)
    assert result.returncode == 1
    assert "the phone stopped answering" in result.stderr
    assert not (written / "results" / "sparse.cpu.1.txt").exists(), "half a result"
    assert not list((phone / "data" / "local" / "tmp").iterdir()), "left on the phone"
    with pytest.raises(ExportError, match="there are no results"):
        android.parse(written)

    assert run(written).returncode == 0
    kept = (written / "results" / "sparse.cpu.1.txt").stat().st_mtime_ns
    (written / "results" / "shift.cpu.2.txt").unlink()
    before = len([call for call in calls(phone) if "./benchmark_model" in call])
    result = run(written)
    assert result.returncode == 0
    assert "sparse, cpu, 1 threads: there already" in result.stdout
    ran = [call for call in calls(phone) if "./benchmark_model" in call][before:]
    assert len(ran) == 1
    assert "--graph=shift.tflite --num_threads=2" in ran[0]
    assert (written / "results" / "sparse.cpu.1.txt").stat().st_mtime_ns == kept

    assert run(written, "--again").returncode == 0
    assert (written / "results" / "sparse.cpu.1.txt").stat().st_mtime_ns > kept


def test_a_model_that_has_changed_is_measured_anew(written, phone, tmp_path):
    assert run(written).returncode == 0
    before = len(calls(phone))
    (tmp_path / "new.tflite").write_bytes(b"another")
    models = {
        "sparse": tmp_path / "new.tflite",
        "shift": tmp_path / "shift_model.tflite",
    }
    android.write(written, models, threads=(1, 2))
    assert run(written).returncode == 0
    ran = [c for c in calls(phone)[before:] if "./benchmark_model" in c]
    assert len(ran) == 3
    assert all("--graph=sparse.tflite" in call for call in ran)


@pytest.mark.parametrize(
    ("devices", "arguments", "message"),
    [
        ((), (), "no phone is connected"),
        (("PIXEL\tunauthorized",), (), "PIXEL is unauthorized; unlock it and allow"),
        (("A\tdevice", "B\tdevice"), (), "several phones are connected: A B"),
        (("A\tdevice",), ("--serial=C",), "the phone C is not ready"),
        (("A\toffline",), ("--serial=A",), "the phone A is not ready"),
        (("A\tdevice",), ("--fast",), "unknown argument --fast"),
        (("A\tdevice",), ("--benchmark_model=/none",), "there is no /none"),
    ],
)
def test_what_is_missing_is_said(written, phone, devices, arguments, message):
    connect(phone, *devices)
    result = run(written, *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("run.sh: ")
    assert message in result.stderr
    assert not any("push" in call for call in calls(phone))


def test_one_of_several_phones_is_chosen(written, phone, monkeypatch):
    connect(phone, "* daemon started successfully", "A\tdevice", "B\tdevice")
    assert run(written, "--serial=B").returncode == 0
    assert all(c.startswith("B|") for c in calls(phone) if "devices" not in c)
    pathlib.Path(f"{phone}.calls").unlink()
    monkeypatch.setenv("ANDROID_SERIAL", "A")
    assert run(written, "--again").returncode == 0
    assert all(c.startswith("A|") for c in calls(phone))


def test_no_adb_and_a_full_phone_are_said(written, phone, monkeypatch, tmp_path):
    flag(phone, "full")
    result = run(written)
    assert result.returncode == 1
    assert "run.sh: cannot push" in result.stderr
    assert "has it room?" in result.stderr
    (tmp_path / "tools" / "adb").unlink()
    result = run(written)
    assert result.returncode == 1
    assert "there is no adb" in result.stderr


def test_a_program_can_be_named_to_the_script(written, phone, tmp_path):
    (written / "benchmark_model").unlink()
    assert "there is no" in run(written).stderr
    result = run(written, f"--benchmark_model={tmp_path / 'program'}")
    assert result.returncode == 0, result.stderr


# --- writing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"a b": "x"}}, "'a b' becomes a file's name"),
        ({"models": {"$(reboot)": "x"}}, "letters, digits"),
        ({"models": {"a": "/none.tflite"}}, r"cannot read the model /none\.tflite"),
        ({"threads": ()}, r"threads=\(\)"),
        ({"threads": (0,)}, r"threads=\(0,\)"),
        ({"runs": 0}, "runs=0 must be at least 1"),
        ({"phone_directory": "/data/local/tmp"}, "is deleted at the end"),
        ({"phone_directory": "/data/local/tmp/.."}, "is deleted at the end"),
        ({"phone_directory": "/data/local/tmp/a b"}, "is deleted at the end"),
        ({"benchmark_model": "/none"}, "cannot read benchmark_model /none"),
    ],
)
def test_what_makes_no_sense_is_not_written(tmp_path, changes, message):
    (tmp_path / "model.tflite").write_bytes(b"model")
    arguments = {"models": {"model": tmp_path / "model.tflite"}} | changes
    with pytest.raises(ExportError, match=message):
        android.write(tmp_path / "out", **arguments)
    assert not (tmp_path / "out" / "run.sh").exists()


def test_neither_writing_nor_parsing_needs_tensorflow(tmp_path):
    code = (
        "import sys; from tflite_export import android;"
        "open('m.tflite', 'wb').write(b'm'); android.write('out', {'m': 'm.tflite'});"
        "assert not {'tensorflow', 'ai_edge_litert'} & set(sys.modules)"
    )
    root = pathlib.Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
