"""ONNX graphs, read from their constants: every stored tensor is followed to all that uses it, and accounted for.

Enters: a parsed `ModelProto` and its path. Leaves: weights with their reduction axes, and for every other constant the rule that
exempts it or the reason why nothing does. May import the readers' arrays and inputs, numpy and onnx; no runtime, no torch.
"""
