"""Where the requests of a service are answered: by its local model, a remote one, or both."""
