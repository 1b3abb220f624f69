"""Which samples a client has, and how it splits them."""
