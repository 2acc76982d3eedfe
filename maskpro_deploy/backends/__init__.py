"""Running a graph or an engine, below exporters and runtime alike: one mechanism for checks, timing and serving.

    providers    what --provider may name; everything that depends on it comes from this registry
    profiles     ranges of shapes that an engine is built for, as the manifest has them, and what they cover
    executor     the interface of what runs a graph on addresses: `onnxruntime_` and `tensorrt_` implement it
    memory       blocks of a device's memory: this machine's, or a GPU's (`cuda`)
    caches       key/value caches in that memory; `cache_pieces` cuts a few tokens out of one for another
    session      a model that reads tokens on top of a cache, over any executor

What enters: an ONNX graph or an engine, tokens. What leaves: logits, times, and what this machine offers. May import: manifest,
system, errors; never exporters, runtime or torch.
"""
