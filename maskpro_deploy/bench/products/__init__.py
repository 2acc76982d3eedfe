"""Single matrix products on a GPU, dense next to 2:4: one after another, or all those of a model.

What enters: the torch module (as an argument: nothing here imports it) and the shapes. What leaves: figures as JSON values.
`ways` multiply, `timing` times them, `measure` measures one product or those of a model. May import: `bench.arms`
and `bench.stats`.
"""
