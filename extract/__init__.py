"""Stage one: images in, features out."""
