"""One file a family of models: how its `config.json` is read and how its layers follow each other; `registry.py` lists all.

What enters: `config.json`. What leaves: a `DecoderConfig` and a graph. May import: graph.
"""
