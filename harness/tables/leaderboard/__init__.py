"""Models ranked with their uncertainty: what may enter, the ranks, the command."""
