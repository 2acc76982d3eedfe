"""Changes of basis that are found for a model before it learns: where channels may move, where they should, and moving them.

`axes` finds out which channels can be permuted together, `exchange` orders them, `search` does both for a model and proves that
its logits stay.
"""
