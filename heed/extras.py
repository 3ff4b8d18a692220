"""Which extra of the distribution contains a package that is missing. Without extras heed is the client."""

EXTRAS = {
    "cli": ("rich", "typer"),
    "server": (
        *("cryptography", "grpc_health", "grpc_reflection", "prometheus_client", "pydantic"),
        *("tokenizers", "uvloop", "yaml"),
    ),
    "cpu": ("onnxruntime",),
    "export": ("onnx", "onnx_ir", "onnxscript", "safetensors", "torch"),
    "plots": ("matplotlib",),
    "otel": ("opentelemetry",),
}
EXTRA_OF = {package: extra for extra, packages in EXTRAS.items() for package in packages}
# What the message adds to the name of the extra.
NOTES = {"server": " (or cpu, which serves, too)", "cpu": " (or gpu, for CUDA)", "export": " and cpu (or gpu)"}


def advice(error: ModuleNotFoundError, wanted: str | None = None) -> str | None:
    """What to install, in a sentence; None if no extra brings what is missing.

    Args:
        error: says which package is missing.
        wanted: the extra that brings everything that the caller needs, where the caller knows it. By default it is the
            one that brings the missing package.
    """
    package = (error.name or "").split(".")[0]
    if package not in EXTRA_OF:
        return None
    extra = wanted or EXTRA_OF[package]
    names = "cpu,export" if extra == "export" else extra
    return (
        f"{package} is not installed; it comes with the extra {extra}{NOTES.get(extra, '')}: "
        f"pip install 'heed-serve[{names}]'"
    )
