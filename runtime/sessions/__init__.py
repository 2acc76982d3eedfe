"""A model that reads tokens on top of a cache, in onnxruntime or in TensorRT, on this machine's memory or a GPU's.

What enters: tokens and a cache. What leaves: logits and the longer cache. May import: backends, manifest.
"""
