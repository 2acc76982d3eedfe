"""What all readers of ONNX graphs share: nodes and their attributes, sizes of tensors, and the walk from a value to its constant.

What enters: a file or a parsed graph. What leaves: facts about its nodes and constants; values are not read. May import: errors.
"""
