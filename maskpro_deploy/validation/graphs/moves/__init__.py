"""What an operator does to a stored weight on its way to a product: cut, joined, scaled, unpacked, picked.

Enters: an operator and a constant. Leaves: the constant as the product sees it, or None. May import: the parent's values.
"""
