"""The language model while it learns: masked layers (`sites`), experts, what is minimised, statistics of its inputs.

What enters: a torch model and windows of text. What leaves: losses, and gradients handed to sites. May import: kernels and below.
"""
