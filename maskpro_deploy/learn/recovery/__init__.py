"""Recovery: training the weights that masks keep, against the dense model, while the masks stay.

What enters: a sparse checkpoint, text, and the dense model as a teacher. What leaves: a sparse checkpoint with the same masks and
other weights. `api` is the way in, `choices.METHODS` lists the methods. May import: the rooms of `learn` but `priors`.
"""
