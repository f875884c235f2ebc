"""Video files in, uint8 frames out: N frames, or an error that says why not.

Knows containers and decoders; nothing of models. Decoding happens in worker processes (`read`), so that no file can end the caller.
"""
