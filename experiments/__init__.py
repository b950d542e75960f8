"""Training runs that compare sparse-training methods."""
