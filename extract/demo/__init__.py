"""A dataset that the package draws itself, and a tiny CLIP pre-trained on similar pictures."""
