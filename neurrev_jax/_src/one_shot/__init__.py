"""Masks drawn once, before training, one module each; all are called alike.

`x_masks(params, sparsity, *, what it is computed from, distribution, where, key)`
returns a mask tree for `sparse_transform(inner, static(), masks=masks)`.
"""
