"""The command line. Each command imports what it needs when it runs, so that each works without the others' extras."""
