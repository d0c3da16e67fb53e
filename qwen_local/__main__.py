"""`python -m qwen_local`."""

from qwen_local.cli import main

main()
