"""Training on preference pairs: losses, packed batches, the trainer and the folder it leaves.

Pairs and a model in; a checkpoint out. It must not know how the pairs came about, only their form (`savi.loop.preferences`).
"""
