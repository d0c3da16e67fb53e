"""Evaluation: the loss of rows that a model was not trained on."""
