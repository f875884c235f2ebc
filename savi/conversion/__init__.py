"""`internvl_chat` checkpoints (InternVL 2.5, VideoSAVi) as native transformers checkpoints, offline and strictly.

A folder in, a folder out; no code that comes with a checkpoint is run.
"""
