"""Federation between sites that never share a cache, on Flower."""
