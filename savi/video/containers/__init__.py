"""A video file's outermost bytes, read without a decoder: which container it is, whether its end is missing, what in it contradicts itself.

FFmpeg opens a file that was cut off or damaged and reports it, if at all, as a decoding error somewhere inside.
"""

from savi.video.containers.inspect import Container, inspect

__all__ = ["Container", "inspect"]
