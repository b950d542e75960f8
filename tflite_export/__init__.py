"""Sparse networks on phones: JAX functions and finished runs to .tflite models."""

from tflite_export.conversion import convert
from tflite_export.errors import ExportError, MissingExtraError, VerificationError
from tflite_export.exported import Exported
from tflite_export.verification import Verification, verify

__all__ = [
    "ExportError",
    "Exported",
    "MissingExtraError",
    "Verification",
    "VerificationError",
    "convert",
    "verify",
]
