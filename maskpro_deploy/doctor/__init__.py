"""What this machine can do, and how to get what is missing; also which engines of a bundle can run here.

What enters: nothing, or a bundle. What leaves: a `Diagnosis`. May import: everything below the commands but reports and runs.
"""
