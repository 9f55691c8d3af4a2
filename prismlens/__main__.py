"""``python -m prismlens`` is the command line."""

from prismlens.cli import main

main()
