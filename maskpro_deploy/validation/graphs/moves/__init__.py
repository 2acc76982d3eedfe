"""What an operator does to a stored weight on its way to a product: cut, joined, scaled, unpacked, picked.

What enters: an operator and a constant's whereabouts. What leaves: the constant as the product sees it, or why not. May import:
values, products and shapes of this package's parent.
"""
