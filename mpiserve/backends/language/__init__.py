"""Serve language models of Hugging Face directories."""
