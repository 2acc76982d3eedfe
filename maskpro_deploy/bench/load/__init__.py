"""Load on servers: figures that say when they must not be believed, under the names of vLLM's `bench serve`.

What enters: clients and loads. What leaves: a `LoadResult`. May import: `bench.results`, and what that may import.

    schedule       open loop (a seeded timetable of arrivals) and closed loop (a fixed number of requests under way); prompts
    client         what a client is (any coroutine function from a `Request` to an `Answer`), and what is recorded of requests
    generator      sends requests on time and records: one sub-run; an event loop with timers finer than a millisecond
    figures        the figures of a sub-run; service level objectives and goodput; why it is invalid
    sweep          several loads, one or two servers in interleaved blocks
    point          one load, and what was recorded under it; finished ones on disk, so that an interrupted sweep goes on
    result         the run as data; columns defines its table, summary puts it into words
    openai_client  a client for any OpenAI-compatible server; stream reads its answers
"""
