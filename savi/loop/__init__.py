"""Self-alignment: ask, answer, criticise, revise; iterate.

Unlabelled videos in; preference pairs, and with `savi.training` the next checkpoint, out. It must not know any benchmark or label.
"""
