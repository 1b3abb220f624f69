"""What the server does with updates: one algorithm a file."""
