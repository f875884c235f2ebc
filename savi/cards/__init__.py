"""What a saved model says about itself: in come its base, pairs, settings and scores; out goes a README.md that the hub reads. The room
knows files only."""
