"""Timing single matrix products, sparse beside dense.

What enters: products as callables. What leaves: a result for each shape, which can be saved and read again. May import: bench.
"""
