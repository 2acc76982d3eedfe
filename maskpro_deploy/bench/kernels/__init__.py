"""Single matrix products of a model on a CPU, in several forms of the weight.

What enters: products as callables. What leaves: a result for each shape (`measure`, `result`), which can be read back and is
described in words (`summary`); `columns` defines its tables. May import: `bench.results`, and what that may import.
"""
