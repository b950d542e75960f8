"""Tests of neurrev_jax, mirroring its modules; `oracles` is plain NumPy."""
