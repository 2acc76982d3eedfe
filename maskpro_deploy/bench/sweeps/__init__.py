"""Latency and throughput of a model alone, case by case, with several models in one run.

What enters: models as callables (`measure`). What leaves: a `BenchResult` (`result`), which can be read back, is compared with
another (`compare`) and described in words (`summary`); `columns` has its figures and tables. May import: `bench.results`,
and what that may import.
"""
