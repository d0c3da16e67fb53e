"""Answers from a model, with or without an adapter."""
