"""Where logits start: one-shot masks, one prior a file, all with the contract of `base`.

What enters: layers, calibration text. What leaves: the first logits, and weights that a prior changed. May import: model,
distributions.
"""
