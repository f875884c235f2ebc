"""What is measured: the catalog of benchmarks (one file each), their data on disk, and synthetic ones (`benchmarks.micro`)."""
