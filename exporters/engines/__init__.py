"""Everything that is TensorRT: from a bundle's graph to engines, their timing and what their kernels are.

What enters: a bundle and an `EngineConfig`. What leaves: engines in the bundle and an `EngineReport`. May import: graph, checks.
"""
