"""One module for each command of `heed`, with the function that defines its arguments, help and exit codes."""
