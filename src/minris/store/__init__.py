"""What is kept: models, rows, the one writer."""
