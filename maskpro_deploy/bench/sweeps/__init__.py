"""Latency and throughput of a model alone, case by case, with several models in one run.

What enters: models as callables. What leaves: a `BenchResult` (`result`, its figures in `figures`), which can be read back
(`saved`), is compared with another (`compare`) and described in words (`summary`); `columns` defines its tables. May import:
`bench.results`, and what that may import.
"""
