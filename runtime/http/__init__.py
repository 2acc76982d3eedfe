"""The OpenAI-compatible server: requests are checked, answered or streamed, counted, and stopped in order.

What enters: HTTP requests. What leaves: answers, events, metrics. May import: generate.
"""
