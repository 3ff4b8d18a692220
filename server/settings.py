"""Every setting of `heed serve`: a flag, an environment variable `HEED_...`, a line of a YAML file; what it means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from heed.bundle.manifest import Device, Precision

Compression = Literal["none", "deflate", "gzip"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
OnDrift = Literal["serve", "unready"]

# IPv6 as in a URL, [::1], is IPv6.
Host = Annotated[str, AfterValidator(lambda host: host.strip("[]"))]


def _in(group: str) -> dict[str, Any]:
    """Where `heed serve --help` shows a setting."""
    return {"group": group}


MODELS, COMPUTING, NETWORK = _in("Models"), _in("Computing"), _in("Network")
SECURITY, LIMITS, OPERATIONS = _in("Security"), _in("Limits"), _in("Operations")


class Settings(BaseModel):
    """Units stand in the help. `heed serve --help` is made from these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Path = Field(description="A bundle folder, or a repository of them: NAME/VERSION/.")

    versions: int = Field(
        1, ge=1, description="How many versions of each model to serve, the newest first.", json_schema_extra=MODELS
    )
    default_model: str = Field(
        "", description="The model of callers who name none; the only one if left out.", json_schema_extra=MODELS
    )
    watch_seconds: float = Field(
        0.0, ge=0, description="Look for new versions at this interval; 0: never.", json_schema_extra=MODELS
    )
    repository_control: bool = Field(
        False, description="Callers may load and unload models of the repository.", json_schema_extra=MODELS
    )
    require_signature: Path | None = Field(
        None,
        description="Serve only what was signed with the private key of this Ed25519 public key (PEM).",
        json_schema_extra=MODELS,
    )
    recheck_seconds: float = Field(
        60.0,
        ge=0,
        description="While serving, a case of the contract is repeated at this interval; 0: never.",
        json_schema_extra=MODELS,
    )
    on_drift: OnDrift = Field(
        "unready",
        description="If a case no longer holds: unready (NOT_SERVING, and the model is refused to callers until it "
        "holds again), or serve (only the log and the metrics say so).",
        json_schema_extra=MODELS,
    )
    attentions: bool = Field(
        False,
        description="Load and verify the attention weights at the start, not when somebody first asks for them.",
        json_schema_extra=MODELS,
    )

    device: Device = Field(
        "auto",
        description="cpu, cuda, or auto: CUDA if it works, and said if it does not.",
        json_schema_extra=COMPUTING,
    )
    precision: Precision = Field(
        "fp32", description="Which of a bundle's precisions to serve.", json_schema_extra=COMPUTING
    )
    threads: int = Field(
        0,
        ge=0,
        description="Groups computed at once; 0: one on each CPU this process may use, two on a GPU.",
        json_schema_extra=COMPUTING,
    )
    kernels: bool = Field(
        True,
        description="Layers and attention by heed's own code, on CPUs with AMX or AVX2 and where it keeps the budget.",
        json_schema_extra=COMPUTING,
    )
    memory_mib: int = Field(
        0,
        ge=0,
        description="Memory that all models may take, in MiB; 0: what the container or the machine has.",
        json_schema_extra=COMPUTING,
    )

    host: Host = Field(
        "127.0.0.1",
        description="Address or name to listen on; 0.0.0.0 for all, in a container say, :: for those of IPv6 too.",
        json_schema_extra=NETWORK,
    )
    port: int = Field(8001, ge=0, le=65535, description="Port for gRPC; 0 picks a free one.", json_schema_extra=NETWORK)
    metrics_port: int = Field(
        8002,
        ge=-1,
        le=65535,
        description="Port for Prometheus, over HTTP; 0 picks a free one, -1: no metrics.",
        json_schema_extra=NETWORK,
    )
    metrics_host: Host = Field(
        "", description="Address or name for the metrics; that of --host if left out.", json_schema_extra=NETWORK
    )
    compression: Compression = Field(
        "none",
        description="How to compress answers: none, deflate or gzip. Requests may come compressed in either way.",
        json_schema_extra=NETWORK,
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        description="Connections end after this time, so that callers find new servers; 0: never.",
        json_schema_extra=NETWORK,
    )
    linger_seconds: float = Field(
        1.0,
        ge=0,
        description="After SIGTERM: how long to go on taking calls while load balancers notice.",
        json_schema_extra=NETWORK,
    )
    grace_seconds: float = Field(
        30.0, ge=0, description="After that: how long calls in flight may take to finish.", json_schema_extra=NETWORK
    )

    tls_certificate: Path | None = Field(
        None,
        description="The server's certificate and those between it and its authority, in PEM; read again when changed.",
        json_schema_extra=SECURITY,
    )
    tls_key: Path | None = Field(
        None, description="The certificate's private key, in PEM, without a password.", json_schema_extra=SECURITY
    )
    tls_client_ca: Path | None = Field(
        None,
        description="Mutual TLS: only clients with a certificate of this authority (PEM) may connect.",
        json_schema_extra=SECURITY,
    )
    tokens: Path | None = Field(
        None,
        description="A file of bearer tokens, one on each line: calls need one of them; read again when changed.",
        json_schema_extra=SECURITY,
    )
    repository_tokens: Path | None = Field(
        None,
        description="A file of tokens for all calls; loading and unloading models needs one of these.",
        json_schema_extra=SECURITY,
    )
    open_health: bool = Field(True, description="Health checks need no token.", json_schema_extra=SECURITY)
    open_reflection: bool = Field(False, description="Reflection needs no token.", json_schema_extra=SECURITY)

    max_queue_tokens: int = Field(
        65536,
        ge=1,
        description="Tokens that may wait; more is refused with RESOURCE_EXHAUSTED.",
        json_schema_extra=LIMITS,
    )
    max_message_mib: int = Field(
        64, ge=1, le=2047, description="Largest gRPC message either way, in MiB.", json_schema_extra=LIMITS
    )
    max_concurrent_requests: int = Field(
        4096,
        ge=1,
        description="Requests in the server at a time; more is refused with RESOURCE_EXHAUSTED, health checks never.",
        json_schema_extra=LIMITS,
    )
    max_streams: int = Field(
        1024,
        ge=1,
        description="Calls that one connection may have open at a time; its further ones wait.",
        json_schema_extra=LIMITS,
    )
    max_batch: int = Field(1024, ge=1, description="Rows of one request.", json_schema_extra=LIMITS)
    max_text_characters: int = Field(
        100_000, ge=1, description="Length of one text, before it is tokenized.", json_schema_extra=LIMITS
    )

    log_format: LogFormat = Field(
        "text", description="Lines for people, or a JSON object on each line.", json_schema_extra=OPERATIONS
    )
    log_level: LogLevel = Field(
        "info", description="From which level on heed logs; debug has every request.", json_schema_extra=OPERATIONS
    )
    log_requests: bool = Field(
        False,
        description="Log every request at level info, without what it contains.",
        json_schema_extra=OPERATIONS,
    )
    traces: bool = Field(
        False,
        description="Send OpenTelemetry traces, as the OTEL_... variables say; the extra otel has what that needs.",
        json_schema_extra=OPERATIONS,
    )
