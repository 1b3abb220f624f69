"""Federation between sites that never share a cache, on Flower.

Importing this imports neither Flower nor torch.
"""

# The engine of `federate` that is Flower's simulation.
ENGINE = "flower"
