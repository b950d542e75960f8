"""Benchmarks on an Android phone: writes what runs there, and reads what came back.

Nothing here needs TensorFlow or LiteRT, a phone or adb: `write` makes a directory with
a shell script, the script runs Google's `benchmark_model` on the phone, and `parse`
reads its outputs.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tflite_export.android_report import Report, parse_output
from tflite_export.android_script import README, SCRIPT
from tflite_export.errors import ExportError
from tflite_export.exported import write_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REMOTE = re.compile(r"/data/local/tmp/[A-Za-z0-9._-]*[A-Za-z0-9_-]")


def write(
    directory: str | os.PathLike[str],
    models: Mapping[str, str | os.PathLike[str]],
    *,
    benchmark_model: str | os.PathLike[str] | None = None,
    threads: Sequence[int] = (1, 2, 4),
    runs: int = 50,
    phone_directory: str = "/data/local/tmp/neurrev_jax",
) -> Path:
    """Writes models, a script that benchmarks them on a phone, and instructions.

    Args:
      directory: where to; created if missing. Results that are there stay.
      models: by name, such as ``"sparse"``, the path of a .tflite file.
      benchmark_model: Google's program for Android on 64-bit Arm, copied beside the
        script; None if it is put there, or named to the script, later. It is never
        downloaded.
      threads: numbers of threads for the CPU, each at least 1. The GPU delegate runs
        once, with 1.
      runs: how often `benchmark_model` runs a model at least, after warming up.
      phone_directory: below ``/data/local/tmp/``; the script deletes it at the end.

    Returns:
      The path of the script, ``run.sh``.

    Raises:
      ExportError: for a name or number that makes no sense, or a file that is not
        there or cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     model = pathlib.Path(directory, "model.tflite")
      ...     _ = model.write_bytes(b"a model")
      ...     script = write(directory + "/phone", {"dense": model})
      ...     sorted(path.name for path in script.parent.iterdir())
      ['README.md', 'models', 'run.sh']
    """
    _check(models, threads, runs, phone_directory)
    directory = Path(directory)
    sizes = {}
    for name, path in models.items():
        contents = _read(Path(path), "the model")
        sizes[name] = len(contents)
        write_file(directory / "models" / f"{name}.tflite", contents)
    if benchmark_model is not None:
        program = _read(Path(benchmark_model), "benchmark_model")
        write_file(directory / "benchmark_model", program).chmod(0o755)
    listed = [str(count) for count in threads]
    script = SCRIPT
    for key, value in {
        "@REMOTE@": phone_directory,
        "@MODELS@": " ".join(models),
        "@THREADS@": " ".join(listed),
        "@RUNS@": str(runs),
    }.items():
        script = script.replace(key, value)
    rows = [f"| {name} | `models/{name}.tflite` | {n:,} |" for name, n in sizes.items()]
    page = README.replace("@THREADS@", ", ".join(listed))
    page = page.replace("@TABLE@", "\n".join(rows))
    write_file(directory / "README.md", page.encode())
    path = write_file(directory / "run.sh", script.encode())
    path.chmod(0o755)
    return path


def parse(directory: str | os.PathLike[str]) -> Report:
    """Reads what the script brought back from the phone.

    Args:
      directory: the one that `write` wrote.

    Returns:
      The report; `Report.write` stores it as CSV and Markdown.

    Raises:
      ExportError: if there are no results.
    """
    directory = Path(directory)
    results = directory / "results"
    runs = []
    for path in sorted(results.glob("*.txt")):
        parts = path.name.removesuffix(".txt").rsplit(".", 2)
        if len(parts) != 3 or not parts[2].isdigit():
            continue  # device.txt
        name, backend, threads = parts
        text = path.read_text(encoding="utf-8", errors="replace")
        runs.append(parse_output(text, name, backend, int(threads)))
    if not runs:
        raise ExportError(
            f"there are no results in {results}; run {directory / 'run.sh'} first."
        )
    return Report(directory, _device(results / "device.txt"), _in_order(runs))


def _check(
    models: Mapping[str, object],
    threads: Sequence[int],
    runs: int,
    phone_directory: str,
) -> None:
    if not models:
        raise ExportError("models is empty; name at least one .tflite file.")
    for name in models:
        if not _NAME.fullmatch(name):
            raise ExportError(
                f"the model's name {name!r} becomes a file's name on a phone; use "
                "letters, digits, '.', '_' and '-' only."
            )
    if not threads or any(not isinstance(n, int) or n < 1 for n in threads):
        raise ExportError(
            f"threads={tuple(threads)!r} must be numbers of at least 1, such as "
            "(1, 2, 4)."
        )
    if runs < 1:
        raise ExportError(f"runs={runs!r} must be at least 1; 50 is usual.")
    if not _REMOTE.fullmatch(phone_directory):
        raise ExportError(
            f"phone_directory={phone_directory!r} is deleted at the end, so it must be "
            "a directory of its own right below /data/local/tmp/."
        )


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"cannot read {what} {path} ({error.strerror}); give the path of a file."
        ) from error


def _device(path: Path) -> dict[str, str]:
    """What the phone said of itself, by property; empty if it was not asked."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(": ", 1) for line in lines if ": " in line)
    return {key: value.strip() for key, value in pairs}


def _in_order(runs):
    return tuple(sorted(runs, key=lambda run: (run.variant, run.backend, run.threads)))
