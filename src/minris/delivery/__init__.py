"""What calls others, over and over."""
