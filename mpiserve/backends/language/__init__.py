"""Language models of Hugging Face directories."""
