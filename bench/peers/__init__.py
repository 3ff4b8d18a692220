"""heed beside other servers: `python -m bench.peers`. docs/peers.md says how the comparison is made."""
