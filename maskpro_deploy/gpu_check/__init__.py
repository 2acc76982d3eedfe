"""What an NVIDIA GPU does for sparse models: one item a question, each run in a process of its own.

What enters: settings and the chosen items. What leaves: one JSON record an item. `items` lists them. May import: all but
the commands.
"""
