"""Load on servers: figures that say when they must not be believed, under the names of vLLM's `bench serve`.

What enters: clients and loads. What leaves: a `LoadResult`. May import: `bench.results`, and what that may import.

    sending        requests on a schedule, and what became of each
    figures        the figures of a sub-run; service level objectives and goodput; why it is invalid
    sweep          several loads, one or two servers in interleaved blocks
    point          one load, and what was recorded under it; finished ones on disk, so that an interrupted sweep goes on
    result         the run as data; columns defines its table, summary puts it into words
    openai_client  a client for any OpenAI-compatible server; stream reads its answers
"""
