"""Who builds the graph of a checkpoint: a template of ours, else mobius-onnx, else transformers' own exporter.

What enters: a checkpoint, and what is to be done with its graph. What leaves: what became of the first graph that works.
May import: architectures, graph; torch only for models without a template.
"""
