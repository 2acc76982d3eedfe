"""The machine under everything: files written whole or not at all, progress lines, optional packages, memory in use.

What enters: paths, and what to say. What leaves: files, and errors in plain words. May import: errors only.
"""
