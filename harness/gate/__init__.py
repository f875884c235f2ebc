"""Deciding: records of a candidate and a baseline, or a published number, in; evidence, decisions, a verdict and an exit code out.

It runs no model (only `early` asks one, through a function it is given) and prints nothing by itself.
"""
