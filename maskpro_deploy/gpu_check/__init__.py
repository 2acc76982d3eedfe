"""What an NVIDIA GPU does for sparse models: one item for each question, run in a process of its own.

What enters: settings and the chosen items. What leaves: one JSON record for each item. `registry` lists the items, `processes`
runs them, `items` is what they share. May import: all but the commands.
"""
