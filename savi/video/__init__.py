"""Video files in, uint8 frames out: N frames, or an error that says why not.

Knows containers and decoders; nothing of models.
"""
