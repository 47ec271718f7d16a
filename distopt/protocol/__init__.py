"""What processes say to each other and what they may conclude from it; no socket, no clock, no optimizer."""
