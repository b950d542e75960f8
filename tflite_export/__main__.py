"""`python -m tflite_export`: from a run's directory to a model that was checked."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tflite_export import commands
from tflite_export.errors import ExportError, VerificationError

FAILED_CHECK, USAGE = 3, 2
_WIDTH = 110

_EPILOG = """\
exit codes: 0, done; 2, a request that cannot be met, with one sentence that says why;
3, a model that fails its own check, which is not written.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; those of the process by default.

    Returns:
      The exit code.
    """
    options = _parser().parse_args(arguments)
    # What converts and checks models runs on the host, whatever else there is.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Into a file or a pipe tables are as wide as they need to be.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    errors = Console(stderr=True)
    try:
        return options.command(options, console)
    except VerificationError as error:
        _complain(errors, "failed", error)
        return FAILED_CHECK
    except ExportError as error:
        _complain(errors, "error", error)
        return USAGE


def _complain(console: Console, what: str, error: Exception) -> None:
    # Brackets in a message are no markup: pip's extras have them.
    sentence = Text(str(error))
    console.print(Text(f"{what}:", style="bold red"), sentence, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tflite_export",
        description="Exports sparse networks to .tflite models, checks and times them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(required=True, metavar="COMMAND")

    one = names.add_parser("convert", help="write the model of a run, checked")
    _add_run(one)
    one.add_argument("--out", type=Path, required=True, help="the .tflite file")
    _add_form(one)
    one.add_argument(
        "--keep_failed",
        action="store_true",
        help="write a model that fails its check all the same, as NAME.failed.tflite",
    )
    one.set_defaults(command=commands.convert)

    one = names.add_parser("verify", help="check a written model against its run")
    _add_run(one)
    one.add_argument("--model", type=Path, required=True, help="a .tflite file")
    _add_data(one)
    one.set_defaults(command=commands.verify)

    one = names.add_parser("inspect", help="say what is in a model")
    one.add_argument("model", type=Path, help="a .tflite file")
    one.set_defaults(command=commands.inspect)

    one = names.add_parser("benchmark", help="time forms of a model on this machine")
    _add_run(one, required=False)
    one.add_argument(
        "--variants",
        default="dense,sparse,shift",
        help="forms of the run's network, with commas (default: %(default)s)",
    )
    one.add_argument(
        "--models", type=Path, nargs="+", help="written models instead of a run's"
    )
    one.add_argument(
        "--threads", default="1", help="such as 1,2 (default: %(default)s)"
    )
    one.add_argument("--runs", type=int, default=50, help="timed runs of each")
    one.add_argument("--out", type=Path, help="write the table as CSV as well")
    one.set_defaults(command=commands.benchmark)

    one = names.add_parser("android", help="benchmark on a phone")
    steps = one.add_subparsers(required=True, metavar="STEP")
    one = steps.add_parser("write", help="models, a script and instructions")
    _add_run(one)
    one.add_argument("--out", type=Path, required=True, help="directory to write to")
    one.add_argument(
        "--variants",
        default="dense,sparse,shift,float16_sparse",
        help="forms of the run's network, with commas (default: %(default)s)",
    )
    one.add_argument(
        "--benchmark_model",
        type=Path,
        help="Google's program for Android on 64-bit Arm; can be added later",
    )
    one.add_argument("--threads", default="1,2,4", help="default: %(default)s")
    one.add_argument("--runs", type=int, default=50, help="timed runs of each")
    one.set_defaults(command=commands.android_write)
    one = steps.add_parser("parse", help="the outputs of the phone as a table")
    one.add_argument("directory", type=Path, help="the one that `write` wrote")
    one.set_defaults(command=commands.android_parse)
    return parser


def _add_run(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--workdir",
        type=Path,
        required=required,
        help="the directory of a run of experiments.main",
    )
    parser.add_argument(
        "--method", help="whose network, where the run has several (default: its first)"
    )


def _add_form(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "float16", "int8", "dynamic_int8"),
        help="of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--sparse",
        action=argparse.BooleanOptionalAction,
        help="store sparse weights in compressed rows (default: for float32, float16)",
    )
    parser.add_argument(
        "--rewrite",
        default="none",
        choices=("none", "shift"),
        help="shift: 3x3 convolutions as 1x1 ones, for Arm (default: %(default)s)",
    )
    parser.add_argument(
        "--batch_size", type=int, default=1, help="of the model (default: %(default)s)"
    )
    _add_data(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        help="check on the images and labels of this .npz file (uint8 [N, H, W, C] and "
        "integers [N]) instead of the run's own examples",
    )


if __name__ == "__main__":
    sys.exit(main())
