"""What this machine can do, and how to get what is missing; which engines of a bundle can run here; how a running server is.

What enters: nothing, a bundle, or a URL. What leaves: a `Diagnosis`, or checks. May import: everything below the commands but
reports and runs.
"""
