"""The whole path on a small real model: learn, prove, export, measure, and a page of it all.

What enters: a folder and a time to spend. What leaves: everything that was made, and the page. May import: all but the commands.
"""
