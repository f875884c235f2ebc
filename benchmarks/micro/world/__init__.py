"""The micro world: scenes, questions about them, and their mp4 files. Numbers in, videos and facts out; it knows no model."""
