"""Frozen encoders: their names, weights, image transforms and prompts."""
