"""Requests sent on a schedule, and what became of each.

What enters: a *client*, any coroutine function from a `Request` to an `Answer`, so that a server, a library or a simulation is
measured alike. What leaves: `Recording`s. May import: the files at the root of `bench`.

    schedule       open loop (a seeded timetable of arrivals) and closed loop (a fixed number of requests under way); prompts
    client         what a client is, what became of a request, and what is recorded of it and of all in a sub-run
    generator      sends requests on time and records: one sub-run; an event loop with timers finer than a millisecond
"""
