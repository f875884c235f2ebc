"""How the shipped base model (benchmarks/micro/base) is made from scratch. The only code of benchmarks that imports torch."""
