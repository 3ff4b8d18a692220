"""What operators see of requests and models.

request_trace.py     follows a request from its arrival to its end
observers.py         what observes requests, by the settings
metrics.py           Prometheus, and Triton's statistics
metrics_endpoint.py  their HTTP port
logs.py              the log
tracing.py           OpenTelemetry
"""
