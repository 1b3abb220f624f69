"""Stage two: features in, adapter out. Needs no encoder and no image library."""
