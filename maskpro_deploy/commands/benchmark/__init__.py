"""`maskpro-deploy benchmark`: one thin file for each of its commands, and their shared options."""
