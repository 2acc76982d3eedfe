"""The demo: a small model taken all the way, step by step, and a page of what it gave.

What enters: a folder and a budget. What leaves: the folder with checkpoints, bundles, figures and the page. `run` has the list of
steps, `state` what they share. May import: all but the commands.
"""
