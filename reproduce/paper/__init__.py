"""The whole experiment in one command: its stages, what each does, and what it prints."""
