"""The gRPC server and what is done with a call before a service sees it.

grpc_server.py     options, port, reflection
accept_loop.py     accepts calls whatever callers send
interceptors.py    the bound on concurrent requests, parsing, errors to statuses
status.py          the status of an error: code, message, trailing metadata
bearer_tokens.py   who may call
certificates.py    TLS
reloaded_files.py  files that are read again when they change
healthcheck.py     a program for containers that asks whether a server is ready
"""
