"""What a machine with an NVIDIA GPU has to show. `docs/gpu.md` says what every row means."""
