"""How logits learn from losses: one estimator a file, all with the contract of `base`.

What enters: windows of text, sites. What leaves: moved logits and a loss. May import: model, kernels, distributions.
"""
