"""The only folder that touches libmpiserve."""
