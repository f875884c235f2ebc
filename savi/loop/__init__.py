"""Self-alignment's first half: ask, answer, criticise, revise.

Unlabelled videos in; preference pairs out. It must not know any benchmark or label, nor how its pairs are trained on (`savi.iterate` does
both in turn).
"""
