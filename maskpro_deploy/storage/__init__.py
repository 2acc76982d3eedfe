"""How weights lie in a checkpoint folder, whoever wrote it.

In come the names, types and files of tensors; out come the file of each tensor, the tool and form that packed them, weights from
behind a bitmask, and which linear layers stay dense. It may import `masks` and what lies below; no torch, no transformers.
"""
