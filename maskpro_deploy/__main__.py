"""`python -m maskpro_deploy` is the `maskpro-deploy` command."""

from maskpro_deploy.cli import main

main()
