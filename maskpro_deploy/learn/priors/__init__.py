"""Where logits start: magnitude, Wanda, SparseGPT, or a mask that exists.

What enters: sites and calibration statistics. What leaves: first logits. May import: model, distributions.
"""
