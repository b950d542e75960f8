"""Sparse-training methods, one module each; every one is a `Method` record."""
