"""What is let go, and what is stuck."""
