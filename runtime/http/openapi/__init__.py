"""The description of the HTTP API, made from what checks its requests, for programs and for people.

    answers      the shapes of answers
    operations   every route: what it takes, what it answers
    document     the OpenAPI document
    page, routes the same as a page that needs nothing else; both over HTTP

What enters: the models of requests and answers. What leaves: `/openapi.json` and `/docs`. May import: api, generate.
"""
