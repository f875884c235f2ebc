"""Preference pairs in the formats of other trainers: files, folders and hub data sets in, files out.

In come rows of any table; out go `PreferencePair`s, and rows of another format. The room knows no model: whether one can be trained on a
pair's system message or earlier turns is for `savi.training` to say.
"""
