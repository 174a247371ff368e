"""`python -m unipelt` is the command `unipelt`, as launchers start modules."""

from .cli.main import main

main()
