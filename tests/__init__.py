"""Makes `tests.*` this folder, whatever packages called `tests` are installed."""
