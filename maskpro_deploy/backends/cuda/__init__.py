"""An NVIDIA GPU: whether there is one, its memory and stream, and CUDA's libraries out of Python packages.

What enters: addresses and work to enqueue. What leaves: memory, copies, times. May import: memory, errors.
"""
