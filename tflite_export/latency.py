"""How long models take on this machine, in LiteRT, beside one another."""

import dataclasses
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.errors import ExportError
from tflite_export.exported import Runner


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one model took for one set of inputs.

    Attributes:
      name: of the model.
      threads: that it computed with.
      runs: how many were timed.
      median: milliseconds.
      quartiles: milliseconds that a quarter, and three quarters, of the runs took at
        most.
      fastest: milliseconds.
    """

    name: str
    threads: int
    runs: int
    median: float
    quartiles: tuple[float, float]
    fastest: float


def measure(
    models: Mapping[str, bytes],
    inputs: Sequence[Any],
    *,
    threads: Sequence[int] = (1,),
    runs: int = 50,
    warmup: int = 5,
) -> list[Timing]:
    """Times models, one run of each in turn.

    In turn, so that whatever else the machine does meets all of them alike.

    Args:
      models: contents of .tflite files, by name; of the same inputs.
      inputs: one array for each input.
      threads: the numbers of threads to time with, each at least 1.
      runs: timed runs of each, at least 1.
      warmup: runs before them that are not timed.

    Returns:
      One for each model and number of threads.

    Raises:
      ExportError: for a number below its range, or a model that LiteRT cannot run.
    """
    if runs < 1 or warmup < 0 or any(count < 1 for count in threads):
        raise ExportError(
            f"runs={runs}, warmup={warmup}, threads={tuple(threads)}: there must be at "
            "least one run and one thread, and no fewer than 0 runs to warm up."
        )
    timings = []
    for count in threads:
        runners = {name: Runner(model, count) for name, model in models.items()}
        for runner in runners.values():
            runner(*inputs)
            for _ in range(warmup):
                runner.invoke()
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(runs):
            for name, runner in runners.items():
                start = time.perf_counter()
                runner.invoke()
                seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            low, middle, high = np.percentile(values, (25, 50, 75)) * 1e3
            timings.append(
                Timing(
                    name=name,
                    threads=count,
                    runs=runs,
                    median=float(middle),
                    quartiles=(float(low), float(high)),
                    fastest=min(values) * 1e3,
                )
            )
    return timings


def computes_sparsely() -> bool:
    """Whether XNNPACK computes sparsely on a processor like this one.

    Returns:
      False on x86 with AVX, where its dense kernels are taken always.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    try:
        return " avx" not in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        # All x86 processors of the last ten years and more have it.
        return False


def host() -> str:
    """This machine in a few words."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name} ({platform.machine()}, {platform.system()})"
