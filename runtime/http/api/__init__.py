"""What the HTTP API says: one module for each endpoint's requests and answers, and what they share.

What enters: bodies of requests, events of the generator. What leaves: requests, answers, errors. May import: generate, and
the names of the request log.
"""
