"""Reports of many runs at once: served on this machine (`view`) or as a static site to share (`bundle`).

In: a folder with runs. Out: pages and video files. It changes no run, and knows no model.
"""
