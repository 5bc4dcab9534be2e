"""What happens once in a while in a training."""
