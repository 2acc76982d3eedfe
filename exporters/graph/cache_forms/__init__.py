"""The forms of the key/value cache, one a file; `forms` is their registry.

What enters: queries, keys and values of a layer. What leaves: attention, with the cache read and written. May import: graph.
"""
