"""heed beside other servers: `python -m bench.peers`. README.md says how the comparison is made."""
