"""What is trained: adapters, full models, and their losses."""
