"""The OpenAI-compatible server: requests are checked, answered or streamed, counted, and stopped in order.

    requests, parsing      what clients may ask
    responses, api_errors  what they get back
    routes, server         what each route does, over a generator that may still be loading; the app and its gate
    streams                from the generator's thread to whole answers and server-sent events
    metrics, config        what is counted; settings
    lifecycle              running the app: socket, loading, signals

What enters: HTTP requests. What leaves: answers, events, metrics. May import: generate, tools. All but `config` need the `serve`
extra.
"""
