"""Metrics on disk: lines of JSON, and TensorBoard's event files.

`metrics.jsonl` holds only what a rerun reproduces, so that two runs can be compared
byte by byte; the time each epoch took goes to `timing.jsonl`. `steps.jsonl` is there
where the config asks for lines within epochs.
"""

import json
import os
from pathlib import Path
from typing import Any, TextIO

import tensorboardX

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
STEPS = "steps.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; none if there is no file.

    A process that is killed may leave half a line at the end.

    Args:
      path: a file of JSON lines.

    Returns:
      The lines up to the first that does not parse.
    """
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file of text as a whole or not at all.

    Args:
      path: the file.
      text: its new contents.
    """
    replace_atomically(path, text.encode("utf-8"))


def replace_atomically(path: Path, contents: bytes) -> None:
    """Replaces a file as a whole or not at all.

    Args:
      path: the file.
      contents: its new contents.
    """
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class MetricsWriter:
    """Appends to the metrics files of one method's directory.

    Opening it for a run that continues drops whatever was written after the
    checkpoint it continues from.

    Args:
      directory: an existing directory.
      after_step: the step training continues from; 0 for a new run.
    """

    def __init__(self, directory: Path, after_step: int):
        for name in (METRICS, TIMING, STEPS):
            path = directory / name
            if path.exists():
                kept = [line for line in read_lines(path) if line["step"] <= after_step]
                write_atomically(path, "".join(_dump(line) for line in kept))
        self._directory = directory
        self._steps: TextIO | None = None
        self._metrics = (directory / METRICS).open("a", encoding="utf-8")
        self._timing = (directory / TIMING).open("a", encoding="utf-8")
        # TensorBoard itself forgets events from `purge_step` on.
        self._events = tensorboardX.SummaryWriter(
            str(directory / "tensorboard"),
            purge_step=after_step + 1 if after_step else None,
        )

    def write(self, metrics: dict[str, Any], timing: dict[str, float]) -> None:
        """Writes one epoch's values and waits until they are on disk.

        Args:
          metrics: with ``step`` and ``epoch``; nested dicts are allowed.
          timing: values that differ from run to run.
        """
        step, epoch = metrics["step"], metrics["epoch"]
        self._metrics.write(_dump(metrics))
        self._timing.write(_dump({"epoch": epoch, "step": step, **timing}))
        for file in (self._metrics, self._timing):
            _flush(file)
        self._add_events("", {**metrics, **timing}, step)

    def write_steps(self, line: dict[str, Any]) -> None:
        """Writes the values of a stretch of steps and waits until they are on disk.

        Args:
          line: with ``step`` and ``epoch``.
        """
        if self._steps is None:
            self._steps = (self._directory / STEPS).open("a", encoding="utf-8")
        self._steps.write(_dump(line))
        _flush(self._steps)
        self._add_events("steps/", line, line["step"])

    def _add_events(self, prefix: str, values: dict[str, Any], step: int) -> None:
        for name, value in _scalars(values):
            if name not in ("step", "epoch"):
                self._events.add_scalar(prefix + name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._timing.close()
        if self._steps is not None:
            self._steps.close()
        self._events.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _flush(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _scalars(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in tree.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{name}/")
        elif value is not None:
            found.append((prefix + name, value))
    return found
