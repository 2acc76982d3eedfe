"""The step of the logits as fast as the machine allows: compiled C, Triton, or torch; and the state of the optimiser.

What enters: logits, gradients, seeds. What leaves: moved logits and new masks. May import: distributions.
"""
