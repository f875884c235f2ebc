"""What is measured: the catalog of the six benchmarks and an embedded small world (`benchmarks.micro`)."""
