"""Build `qwen-local/tiny` and its sample data: `python -m qwen_local.embedded.make`."""
