"""Keras: the model, its metrics and its callbacks."""
