"""`maskpro-deploy benchmark`: one file per subcommand, and the options that they share.

What enters and leaves: as in `commands`. May import: everything but other commands.
"""
