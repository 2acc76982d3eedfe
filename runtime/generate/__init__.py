"""Text from a session: prompts to answers, many at once.

    generator, loading        the thread that owns a session; from a bundle to it
    scheduler, sequence       who runs when, and settings; one answer in the making, its events, the finished answer
    reading                   prompts that are read together, on top of what is kept of earlier ones
    sampling_params, sampling what a request may set, defined once; which token is next
    model_defaults            what a model's authors recommend for requests that do not say
    grammars, grammar_compiler  what an answer may be; which tokens may be next, so that it is
    tokenizer, text_stream    text to tokens and back; token by token
    chat_template             messages to text

What enters: prompts and `SamplingParams`. What leaves: events, and a `Completion`. May import: sessions.
"""
