"""An inference rank at work."""
