"""Half-precision graphs checked in half precision: every value rounded, and how near values come to the ends of their type.

What enters: a graph of a bundle. What leaves: a session of it in its own arithmetic, and ranges. May import: graph, `ort_model`.
"""
