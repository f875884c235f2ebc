"""Measuring: a model with lmms-eval's interface, its tasks run offline, every answer journalled as it is made.

A checkpoint and data sets in; question records and scores out. It decides nothing.
"""
