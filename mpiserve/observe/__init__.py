"""What the log says of a rank at work."""
