"""Frozen encoders: which one, its weights, how it takes images and prompts."""
