"""Functions that a model may call: what a request offers, how models write calls, calls found in a text.

    offers        the functions of a request, and whether one has to be called
    formats       how each kind of model writes calls: one registry
    grammar       calls as a grammar, made of the functions' own schemas
    arguments     schemas that allow no argument but those they name
    reader        from the text of an answer, piece by piece, to content and calls
    call_objects  one call as JSON, read character by character

What enters: a request's tools, text. What leaves: grammars, content and calls. May import: generate.
"""
