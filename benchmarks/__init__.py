"""Speed, memory and traffic. Run from the root of the repository: `python -m benchmarks.losses`. See README.md."""
