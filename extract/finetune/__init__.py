"""Networks and images for training whole models in place of adapters."""
