"""XNNPACK as on an x86 processor without AVX, to see its sparse kernels at work.

XNNPACK computes sparsely on Arm, and on x86 only where there is no AVX. It looks at the
processor once, and keeps what it found in a structure of LiteRT's library; here the
bits of AVX and everything newer are cleared in it, before the first model is loaded.
From then on both dense and sparse models run on its SSE kernels, which are slower, so
that only the ratio of the two says something, and it is that of a processor nobody
buys: a stand-in for a phone, not a prediction for one.

This depends on the layout of that structure in ai-edge-litert 2.3 for Linux on x86-64,
and on binutils' `nm`. It is for this benchmark and nothing else.
"""

import ctypes
import importlib
import importlib.util
import pathlib
import subprocess

_LIBRARY = "libpywrap_litert_common.so"
# After the flags of the vendor come those of the instruction sets: SSE, SSE2, SSSE3 and
# SSE4.1 in the lowest four bits, AVX in the fifth.
_OFFSET, _AVX, _UP_TO_SSE = 8, 0x10, 0x0F


def hide_avx() -> None:
    """Makes XNNPACK take this processor for one without AVX, in this process.

    Raises:
      RuntimeError: if the library is not as expected, or a model was loaded before.
    """
    spec = importlib.util.find_spec("ai_edge_litert")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("LiteRT is not installed: pip install 'neurrev_jax[export]'")
    # Loads the library.
    importlib.import_module("ai_edge_litert.interpreter")
    path = pathlib.Path(spec.submodule_search_locations[0]) / _LIBRARY
    listed = subprocess.run(["nm", path], capture_output=True, text=True, check=True)
    symbols = {
        fields[2]: int(fields[0], 16)
        for fields in map(str.split, listed.stdout.splitlines())
        if len(fields) == 3
    }
    maps = pathlib.Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    base = min(int(line.split("-")[0], 16) for line in maps if _LIBRARY in line)
    init = ctypes.CFUNCTYPE(ctypes.c_void_p)(base + symbols["xnn_init_hardware_config"])
    address = init()
    if address is None:
        raise RuntimeError("XNNPACK does not support this processor.")
    flags = ctypes.c_uint64.from_address(address + _OFFSET)
    if not flags.value & _AVX or flags.value >> 32:
        raise RuntimeError(
            f"the flags {flags.value:#x} are not those of a processor with AVX; this "
            "benchmark was written for ai-edge-litert 2.3 on x86-64."
        )
    flags.value &= _UP_TO_SSE
