"""Requests sent on a schedule, and what became of each.

What enters: a *client*, any coroutine function from a `Request` to an `Answer`, so that a server, a library or a simulation is
measured alike. What leaves: `Recording`s. May import: the files at the root of `bench`.

    schedule       open loop (a seeded timetable of arrivals) and closed loop (a fixed number of requests under way)
    requests       prompts of fixed lengths drawn from token ids or text
    client         what a client is, and what became of a request
    record         what is recorded of a request, and of all in a sub-run
    generator      sends requests on time and records: one sub-run
    event_loop     timers finer than a millisecond
"""
