"""What Google's `benchmark_model` says, read into numbers and tables.

Its output is a log for people. The formats understood here are those of
`tensorflow/lite/tools/benchmark` and `tensorflow/core/util/stats_calculator.cc` from
TensorFlow 2.3 to LiteRT: with and without a level in front of each line, with and
without the column of starting times in its tables.
"""

import csv
import dataclasses
import io
import re
from pathlib import Path

from tflite_export.exported import write_file

_TOP = 5

_LEVEL = re.compile(r"^(?:INFO|WARNING|WARN|ERROR|VERBOSE): ")
_TIMINGS = re.compile(
    r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+), "
    r"Warmup \(avg\): ([\d.e+]+), Inference \(avg\): ([\d.e+]+)"
)
_COUNT = re.compile(r"^count=(\d+)\b(.*)$")
_FIELD = re.compile(r"(\w+)=([-\d.e+]+)")
_MEMORY = re.compile(
    r"[Mm]emory footprint.*\(MB\): init=([-\d.e+]+) overall=([-\d.e+]+)"
)
_SIZE = re.compile(r"input model file size \(MB\): ([\d.e+]+)")
_REPLACING = re.compile(
    r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \((\w+)\) node, "
    r"yielding (\d+) partitions"
)
_APPLIED = re.compile(
    r"Explicitly applied .+ delegate, and the model graph will be "
    r"(completely|partially)|Though .+ delegate is explicitly applied, the model "
    r"graph will (not) be"
)
_SPLIT = re.compile(
    r"(\d+) operations will run on the GPU, and the remaining (\d+)"
    r"(?: operations will run)? on the CPU"
)
_STATUS = re.compile(r"^exit status: (\d+)$")
_TROUBLE = re.compile(
    r"^ERROR: |failed|Failed|not supported|not executable|Segmentation fault|Aborted"
    r"|CANNOT LINK|not found|Killed|Permission denied|FATAL"
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An entry of the profile.

    Attributes:
      kind: such as ``"Convolution (NHWC, F32) IGEMM"``.
      milliseconds: per inference, on average.
      percent: of the time of an inference.
    """

    kind: str
    milliseconds: float
    percent: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One model on one backend with one number of threads.

    What the output does not tell is None. Times are in milliseconds, memory in MB.

    Attributes:
      variant: name of the model.
      backend: ``"cpu"`` or ``"gpu"``.
      threads: of the CPU.
      status: how `benchmark_model` ended; 0 is well.
      init_ms: loading the model, preparing delegates included.
      first_ms: the first inference.
      warmup_ms: mean of the warm-up.
      mean_ms: mean of the measured inferences.
      min_ms: fastest of them.
      max_ms: slowest of them.
      std_ms: their standard deviation.
      runs: how many were measured.
      init_mb: memory that loading took, approximately.
      memory_mb: memory taken in all, approximately.
      model_mb: size of the file.
      delegated: nodes of the graph that a delegate computes.
      nodes: nodes of the graph.
      partitions: pieces into which delegates cut the graph.
      delegate: how much of the graph the delegate asked for computes:
        ``"completely"``, ``"partially"``, ``"not"``.
      top: the operations that take longest, at most 5.
      errors: lines that tell of trouble.
    """

    variant: str
    backend: str
    threads: int
    status: int | None = None
    init_ms: float | None = None
    first_ms: float | None = None
    warmup_ms: float | None = None
    mean_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    std_ms: float | None = None
    runs: int | None = None
    init_mb: float | None = None
    memory_mb: float | None = None
    model_mb: float | None = None
    delegated: int | None = None
    nodes: int | None = None
    partitions: int | None = None
    delegate: str | None = None
    top: tuple[Operation, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether there is a time to believe in."""
        return self.status in (0, None) and self.mean_ms is not None


def parse_output(text: str, variant: str, backend: str, threads: int) -> Run:
    """Reads the output of one run of `benchmark_model`.

    Args:
      text: the output, standard error included; may end anywhere.
      variant: name of the model.
      backend: ``"cpu"`` or ``"gpu"``.
      threads: of the CPU.

    Returns:
      What it says. If there is no time in it and no trouble either, the errors say so.

    Example:
      >>> text = "count=50 first=9 curr=8 min=7 max=12 avg=8.5 std=1"
      >>> run = parse_output("count=1 curr=20 avg=20" + chr(10) + text, "a", "cpu", 1)
      >>> run.runs, run.mean_ms, run.max_ms
      (50, 0.0085, 0.012)
    """
    found: dict = {}
    errors: list[str] = []
    lines = [line.rstrip("\r\n") for line in text.splitlines()]
    for line in lines:
        message = _LEVEL.sub("", line.strip())
        if match := _TIMINGS.search(message):
            names = ("init_ms", "first_ms", "warmup_ms", "mean_ms")
            found.update(zip(names, map(_from_us, match.groups()), strict=True))
        elif match := _COUNT.search(message):
            # The warm-up comes first, the measured runs after it.
            found.update(_statistics(int(match[1]), match[2]))
        elif match := _MEMORY.search(message):
            found.update(init_mb=float(match[1]), memory_mb=float(match[2]))
        elif match := _SIZE.search(message):
            found["model_mb"] = float(match[1])
        elif match := _REPLACING.search(message):
            found["delegated"] = found.get("delegated", 0) + int(match[1])
            # With two delegates the second sees what the first left of the graph.
            if match[2] and "nodes" not in found:
                found["nodes"] = int(match[2])
            found["partitions"] = int(match[4])
        elif match := _APPLIED.search(message):
            found["delegate"] = match[1] or match[2]
        elif match := _SPLIT.search(message):
            on_gpu, on_cpu = int(match[1]), int(match[2])
            found.setdefault("nodes", on_gpu + on_cpu)
        elif match := _STATUS.search(message):
            found["status"] = int(match[1])
        elif _TROUBLE.search(line.strip()):
            errors.append(message)
    if found.get("status", 0) and not errors:
        errors.append(f"benchmark_model ended with the exit status {found['status']}")
    if backend == "gpu" and found.get("delegate") == "not":
        errors.append("the GPU computes nothing of this model: the times are the CPU's")
    if "mean_ms" not in found and not errors:
        errors.append("the output ends before any time was measured")
    return Run(
        variant,
        backend,
        threads,
        top=_top(lines),
        errors=tuple(dict.fromkeys(errors)),
        **found,
    )


def _from_us(text: str) -> float:
    return round(float(text) / 1000, 6)


def _statistics(count: int, text: str) -> dict:
    """Of a line such as ``count=50 first=.. curr=.. min=.. max=.. avg=.. std=..``."""
    fields = {name: _from_us(value) for name, value in _FIELD.findall(text)}
    # Where all values are equal, only `curr` or `avg` may be there.
    value = fields.get("avg", fields.get("curr"))
    return {
        "runs": count,
        "mean_ms": value,
        "min_ms": fields.get("min", value),
        "max_ms": fields.get("max", value),
        "std_ms": fields.get("std", 0.0),
    }


def _top(lines: list[str]) -> tuple[Operation, ...]:
    """The table of the longest operations of the measured runs, not of loading."""
    start = next(
        (i for i, line in enumerate(lines) if "Profiling Info for Regular" in line), 0
    )
    table = next(
        (
            i
            for i, line in enumerate(lines[start:], start)
            if "= Top by Computation Time =" in line
        ),
        None,
    )
    if not start or table is None:
        return ()
    header = _cells(lines[table + 1]) if table + 1 < len(lines) else []
    if "[avg ms]" not in header or "[%]" not in header:
        return ()
    average, percent = header.index("[avg ms]"), header.index("[%]")
    operations = []
    for line in lines[table + 2 :]:
        cells = _cells(line)
        if len(cells) <= percent or "=" * 10 in line:
            break
        number = float(cells[percent].rstrip("%"))
        operations.append(Operation(cells[0], float(cells[average]), number))
    return tuple(operations[:_TOP])


def _cells(line: str) -> list[str]:
    """Columns stand apart by tabs; kinds of operations have spaces in them."""
    return [cell.strip() for cell in _LEVEL.sub("", line).strip().split("\t")]


# --- report -------------------------------------------------------------------------

_COLUMNS = (
    "variant", "backend", "threads", "status", "init_ms", "first_ms", "warmup_ms",
    "mean_ms", "min_ms", "max_ms", "std_ms", "runs", "init_mb", "memory_mb",
    "model_mb", "delegated", "nodes", "partitions", "delegate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Report:
    """All runs on one phone.

    Attributes:
      directory: where `write` stores it.
      device: what the phone said of itself, by property.
      runs: ordered by variant, backend and threads.
    """

    directory: Path
    device: dict[str, str]
    runs: tuple[Run, ...]

    def csv(self) -> str:
        """One line per run with everything that is known of it; else empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*_COLUMNS, "top", "errors"))
        for run in self.runs:
            values = [getattr(run, name) for name in _COLUMNS]
            top = "; ".join(f"{op.kind} {op.percent:g} %" for op in run.top)
            errors = "; ".join(run.errors)
            writer.writerow(["" if v is None else v for v in (*values, top, errors)])
        return stream.getvalue()

    def markdown(self) -> str:
        """A table of times, then what went wrong and what takes longest."""
        head = ["model", "on", "threads", "inference ms", "min", "max", "first ms"]
        head += ["load ms", "runs", "memory MB", "delegated"]
        lines = [_row(head), "|" + "---|" * len(head)]
        for run in self.runs:
            if run.succeeded:
                mean = f"{_number(run.mean_ms)} ± {_number(run.std_ms)}"
                times = (run.min_ms, run.max_ms, run.first_ms, run.init_ms)
            else:
                # A time that belongs to a failed run must not be taken for one.
                mean, times = "failed", (None,) * 4
            cells = [run.variant, run.backend, str(run.threads), mean]
            cells += [_number(value) for value in times]
            cells += ["-" if run.runs is None else str(run.runs)]
            cells += [_number(run.memory_mb), _delegated(run)]
            lines.append(_row(cells))
        text = ["# On the phone", ""]
        text += [f"- {key}: {value}" for key, value in self.device.items()]
        text += ["", *lines] if self.device else lines
        troubled = [run for run in self.runs if run.errors]
        if troubled:
            text += ["", "## Trouble", ""]
        for run in troubled:
            text += [f"- {_name(run)}: {error}" for error in run.errors]
        profiled = [run for run in self.runs if run.succeeded and run.top]
        if profiled:
            text += ["", "## What takes longest", ""]
        for run in profiled:
            parts = (f"{op.kind} {op.percent:g} %" for op in run.top)
            text.append(f"- {_name(run)}: {', '.join(parts)}")
        return "\n".join(text) + "\n"

    def write(self) -> tuple[Path, Path]:
        """Writes ``report.csv`` and ``report.md`` into the directory.

        Returns:
          Their paths.

        Raises:
          ExportError: if they cannot be written.
        """
        return (
            write_file(self.directory / "report.csv", self.csv().encode()),
            write_file(self.directory / "report.md", self.markdown().encode()),
        )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _name(run: Run) -> str:
    return f"{run.variant}, {run.backend}, {run.threads} threads"


def _delegated(run: Run) -> str:
    if run.delegated is None:
        return run.delegate or "-"
    of = "" if run.nodes is None else f" of {run.nodes}"
    return f"{run.delegated}{of} nodes"
