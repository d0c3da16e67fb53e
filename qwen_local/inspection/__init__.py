"""Implementation of `data check`, `data show` and `data check --fix`."""
