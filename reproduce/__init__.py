"""Runs the experiment of the VideoSAVi paper and prints its tables beside ours."""
