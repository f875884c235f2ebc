"""A video encoded once: a model that answers and scores any number of prompts on it.

Checkpoint and frames in; replies and log-probabilities out. It knows nothing of critiques, preferences or training.
"""
