"""Distributions of masks with exactly N of M: sampling, entropies, derivatives; and masks as packed bits.

What enters: logits. What leaves: masks, probabilities, gradients. May import: pattern only.
"""
