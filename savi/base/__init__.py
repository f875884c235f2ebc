"""The ground floor: files that survive a crash, digests, names of models. All four packages stand on it.

It imports nothing of this project and never torch at import.
"""
