"""Who builds the graph of a checkpoint: a template of ours, else mobius-onnx, else transformers' own exporter.

What enters: a checkpoint. What leaves: a `Template`. May import: architectures, graph; torch only for models without a template.
"""
