"""The backend `remote`: models that another server runs."""
