"""From images to vectors in parts: one process, or several ranks that share the work."""
