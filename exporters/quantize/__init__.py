"""Weights as small integers whose rounding is chosen by what the model does with text.

What enters: a graph, weights and text. What leaves: rounded weights. May import: graph.
"""
