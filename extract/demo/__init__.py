"""A dataset drawn by the package, and a tiny CLIP pre-trained on similar pictures."""
