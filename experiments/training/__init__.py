"""What happens between a validated config and a finished run."""
