"""One reader for each format: what is stored becomes matrices to count in, and an account of everything else.

What enters: a path. What leaves: a `Source`. `readers` says which reader takes which path. May import: graphs, and the modules of
validation that no format knows.
"""
