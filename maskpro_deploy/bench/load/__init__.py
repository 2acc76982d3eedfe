"""Load on a server: requests on a schedule, what became of each, and figures that say when not to be believed.

Everything takes callables: a *client* is any coroutine function from a `Request` to an `Answer`, so that a server, a library or a
simulation is measured alike.

    schedule       open loop (a seeded timetable of arrivals) and closed loop (a fixed number of requests under way)
    requests       prompts of fixed lengths drawn from token ids or text
    client         what a client is, and what became of a request
    record         what is recorded of a request, and of all in a sub-run
    generator      sends requests on time and records: one sub-run
    event_loop     timers finer than a millisecond
    slo            service level objectives and goodput
    figures        the figures of a sub-run under vLLM's names; why it is invalid
    sweep          several loads, one or two servers in interleaved blocks
    points         finished points of a sweep on disk, so that an interrupted one goes on
    result         the run as data; summary and page: in words and as a page
    openai_client  a client for any OpenAI-compatible server; stream reads its answers
"""
