"""One thin file per command: parse, call one function of the library, print. `cli.COMMANDS` lists them.

What enters: the words of a command line. What leaves: a result on stdout, progress on stderr, an exit code. May import:
everything but `cli`.
"""
