"""How logits learn from losses: one estimator a file, all with the contract of `base`; `choices.ESTIMATORS` lists them.

What enters: windows of text, sites. What leaves: moved logits and a loss. May import: model, kernels, distributions.
"""
