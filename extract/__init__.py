"""Stage one: encodes images to features."""
