"""Results and settings as people read them."""
