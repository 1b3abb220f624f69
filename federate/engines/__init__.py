"""Back ends of local training: each trains any tasks, and a test holds their answers equal."""
