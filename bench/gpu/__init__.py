"""What a machine with an NVIDIA GPU has to show. README.md says what every row means."""
