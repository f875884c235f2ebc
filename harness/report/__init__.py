"""One self-contained HTML file about a run folder. Reads files; runs no model and asks no network."""
