"""The decoder for GPUs. In: branches of prefixes (`savi.engine.decoding.Branch`); out: their new ids, equal to the eager decoder's.

It must not know texts, files or losses. `static` runs a batch, `buffers` holds what a step reads and writes, `attention` joins prefix and
branch, `either` chooses between this decoder and the eager one.
"""
