"""The work of commands that takes more than one call of the library: measured, saved, written and printed.

What enters: settings that a command has read. What leaves: results, on stdout, in files and on pages. May import: targets and
reports, and what is below them.
"""
