"""Networks and images for training full models in place of adapters."""
