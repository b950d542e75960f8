"""What goes around the steps of training: pruning in rounds, freezing, sieving."""
