"""The decoder as an ONNX graph, from `config.json` and the weights alone: layers, rotary tables, cache forms, data file.

What enters: a `DecoderConfig` and a checkpoint. What leaves: `model.onnx` and its data file. May import: checkpoint, manifest,
system; no other room of the exporters.
"""
