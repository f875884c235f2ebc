"""Twins of the benchmarks: questions on micro scenes in the documents and folders that lmms-eval's own tasks read."""
