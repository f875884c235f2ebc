"""Where the data sets lie, whether they are complete, and how they are fetched when asked for."""
