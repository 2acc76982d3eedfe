"""Every page and plot: self-contained HTML, made from one set of blocks.

What enters: results (of learning, proving, exporting, building, measuring). What leaves: a `Report`, which `blocks.write` writes.
`blocks` and `plots` know no kind of result; each other module lays out one kind. May import: the modules whose results they show.
"""
