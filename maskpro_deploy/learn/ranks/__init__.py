"""A run on several processes: who they are and what they exchange (`group`), and gradients that all of them share (`reducer`).

Every rank holds the model and takes its share of each batch. What is moved is moved by all of them alike, so that they stay equal
to the bit, and rank 0 alone writes.
"""
