"""What the HTTP API says: one module for each endpoint's requests and answers, and what they share.

    chat, completions, tokens       requests, and the shape of their answers
    responses, response_events      the same of the Responses API
    requests, parsing, limits       what all requests share; from a body to one of them; how much one may hold
    formats, streams                the shapes of answers; from the generator's thread to answers and events
    errors, refused                 answers other than 200; routes that clients try and that are not served

What enters: bodies, events. What leaves: requests, answers, server-sent events. May import: generate.
"""
