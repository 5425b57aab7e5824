"""What the generated service costs, side by side with less."""
