"""How `qwen-local/tiny` and its sample data are made: `python -m qwen_local.embedded.make`."""
