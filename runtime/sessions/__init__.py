"""Bundles opened for serving, and batches of sequences over a session.

What enters: a bundle's folder and a `SessionConfig`; later prompts and tokens. What leaves: a session (`backends.session`), and
logits. May import: backends, manifest.
"""
