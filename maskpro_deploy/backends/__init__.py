"""What graphs and engines run on, below exporters and runtime alike.

What enters: an ONNX graph or an engine, arrays or addresses. What leaves: arrays, and what this machine offers (providers, CUDA
memory, libraries). May import: manifest, system, errors; never exporters, runtime or torch.
"""
