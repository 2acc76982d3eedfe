"""Whether an exported graph is right: the pattern holds, logits agree with the reference, half precision is enough.

What enters: a bundle and a reference. What leaves: figures for the manifest, or a refusal. May import: graph.
"""
