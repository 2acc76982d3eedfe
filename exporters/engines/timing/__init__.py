"""Timing the sparse engine against its dense twin on a GPU.

What enters: loaded engines and the points to time. What leaves: a `Comparison`. May import: kernels, backends, bench.
"""
