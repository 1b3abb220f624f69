"""What is trained: adapters, whole models, and their losses."""
