"""The OpenAI-compatible server: requests are checked, answered or streamed, counted, and stopped in order.

    api                    what clients may ask and what they get back, one module for each endpoint
    routes, server         what each route does, over a generator that may still be loading; the app and its gate
    metrics, config        what is counted; settings
    tls, traces            the certificate; spans for a collector
    page                   the chat page
    lifecycle, listening   running the app: loading, signals, the socket; uvicorn_ is its HTTP server
    memory                 what long requests leave behind
    openapi                the description of all routes, for programs and people

What enters: HTTP requests. What leaves: answers, events, metrics. May import: generate, tools. All but `config` need the `serve`
extra.
"""
