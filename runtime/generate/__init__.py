"""Text from a session: who runs when (`scheduler`), which token is next (`sampling`), and text to tokens and back.

What enters: prompts and `SamplingParams`. What leaves: a `Completion`, piece by piece. May import: sessions.
"""
