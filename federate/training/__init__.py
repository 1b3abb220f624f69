"""What a client does in a round: local training by several engines, and evaluation."""
