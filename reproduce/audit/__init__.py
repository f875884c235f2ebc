"""What published numbers can carry, from the tables and the question counts alone."""
