"""Opening what a user names - a bundle, a checkpoint, a server's address - as something that can be measured.

What enters: paths, names and providers. What leaves: models that give logits, arms of a benchmark, servers that answer. May
import: exporters, runtime and all below them.
"""
