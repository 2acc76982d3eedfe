"""The text that ships with the package, as one compressed file.

What enters: nothing. What leaves: `corpus.jsonl.xz`, which `data` reads and `scripts/make_corpus` writes. Imports nothing.
"""
