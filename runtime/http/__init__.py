"""The OpenAI-compatible server: requests are checked, answered or streamed, counted, and stopped in order.

    requests, parsing      what clients may ask
    responses, api_errors  what they get back
    routes, server         which route does what; the app
    streams                from the generator's thread to whole answers and server-sent events
    slot, metrics          the generator that may still be loading, and what is counted
    lifecycle, listener    running the app: socket, loading, signals
    config, middleware     settings; request ids and the API key

What enters: HTTP requests. What leaves: answers, events, metrics. May import: generate. All but `config` need the `serve` extra.
"""
