"""Bringing models and pairs to the hub, with their cards. In come a folder or a file; out goes a commit. The room trains nothing and knows
no benchmark."""
