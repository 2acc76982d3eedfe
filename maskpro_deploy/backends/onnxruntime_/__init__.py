"""Graphs in onnxruntime: how a session is opened, run on addresses, and given an engine by its TensorRT provider.

What enters: an ONNX graph, providers, addresses. What leaves: values at those addresses. May import: executor, profiles, cuda.
"""
