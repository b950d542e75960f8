"""Sparse networks on phones: JAX functions and finished runs to .tflite models."""

from tflite_export.conversion import convert
from tflite_export.errors import ExportError, MissingExtraError, VerificationError
from tflite_export.exported import Exported
from tflite_export.trainer import Trainer, params_and_masks, with_masks
from tflite_export.training_step import TrainableModel, convert_training_step
from tflite_export.verification import Verification, verify

__all__ = [
    "ExportError",
    "Exported",
    "MissingExtraError",
    "TrainableModel",
    "Trainer",
    "Verification",
    "VerificationError",
    "convert",
    "convert_training_step",
    "params_and_masks",
    "verify",
    "with_masks",
]
