"""The plan: what a run of `learn` or `recover` takes, predicted before the model's weights are read.

What enters: a checkpoint's configuration and headers, and settings. What leaves: bytes at the peak by what they are for, and
seconds of a step. `plan` is the way in; `runs` has what differs between the kinds of runs. May import: all rooms of `learn`.
"""
