"""GNIME: measure how much a model's explanations leak of the images they explain, and stop it."""

__version__ = "0.1.0"
