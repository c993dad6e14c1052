"""Log what happens on a rank."""
