"""Benchmarks of a model: latency and throughput over many cases, and two saved runs compared.

What enters: arms (models that can be called) and a sweep's settings. What leaves: a `BenchResult`, its figures in words, and the
same read again from a file. May import: the other rooms of bench.
"""
