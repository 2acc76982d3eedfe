"""An NVIDIA GPU: whether there is one, and its memory and stream.

What enters: addresses and work to enqueue. What leaves: memory, copies, times. May import: memory, errors.
"""
