"""Engines in TensorRT's own runtime, or in TensorRT-RTX's: the library with its log, and an engine that runs on addresses.

What enters: an engine's file, shapes and addresses. What leaves: values there, and times. May import: executor, profiles, cuda.
"""
