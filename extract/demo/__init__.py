"""A data set that the package draws itself, and a tiny CLIP pre-trained on its like."""
