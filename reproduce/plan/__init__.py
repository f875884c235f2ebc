"""What a run would cost: a scale in; videos, tokens, hours, disk and each GPU's memory out. It must not know models; `calibrate` alone
measures with one.
"""
