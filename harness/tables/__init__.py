"""Tables of cells in many formats, published rows, leaderboards. Scores in, text out."""
