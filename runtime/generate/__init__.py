"""Text from a session: prompts to answers, many at once.

    generator, loading        the thread that owns a session; from a bundle to it
    scheduler, sequence       who runs when; one answer in the making and its events
    sampling_params, sampling what a request may set, defined once; which token is next
    tokenizer, chat_template, streaming_text   text to tokens and back
    completion, refusals, config               finished answers; why a request is refused; settings

What enters: prompts and `SamplingParams`. What leaves: events, and a `Completion`. May import: sessions.
"""
