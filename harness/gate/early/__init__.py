"""Early stopping: videos in random order until the verdict on the whole set is certain."""
