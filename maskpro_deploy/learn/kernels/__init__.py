"""Steps of logits and kept weights as fast as the machine allows (C, Triton, or torch), and the state of their optimisers.

What enters: logits, weights, gradients, seeds. What leaves: moved ones, and new masks. May import: distributions.
"""
