"""Training videos that are benchmark videos: by name, by bytes, and by what is seen.

Comes in: a folder of videos and the benchmarks below HF_HOME. Goes out: pairs of a training video and a benchmark's video, with the
evidence. Knows no model and no training.
"""
