"""The measurements behind `benchmark` and `eval`: from opened targets to results on stdout, in files and on pages.

What enters: settings that a command has read. What leaves: results, saved and printed. May import: targets, reports and below.
"""
