"""The command line: `main.py` finds a command in `commands/`; the other modules are what several commands share.

console.py          results on stdout, messages on stderr, exit codes
server_options.py   options of commands that call a server
answers.py          answers about texts, as tables           (call)
tokens.py           tokens as people read them               (call, attend)
drawing.py          attention weights as a picture           (attend)
differences.py      the answers of two bundles compared      (diff)
reports.py          a proof as a table                       (export, inspect, verify)
verify_endpoint.py  a contract asked of a running server     (verify)
standard_streams.py stdout and stderr that break nothing
interrupts.py       Ctrl-C and SIGTERM while files are written (export)
"""
