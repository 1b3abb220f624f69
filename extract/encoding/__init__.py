"""Encodes images to vectors, in parts, in one process or in several ranks."""
