"""Every setting of `heed serve`: a flag, an environment variable `HEED_...`, and what it means."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from bundle.manifest import Precision

Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseSettings):
    """Units stand in the help. `heed serve --help` is made from these fields."""

    model_config = SettingsConfigDict(env_prefix="HEED_", extra="forbid", frozen=True)

    bundle: Path = Field(description="The bundle folder to serve.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all, in a container say.")
    port: int = Field(8001, ge=0, le=65535, description="Port for gRPC; 0 picks a free one.")
    metrics_port: int = Field(
        8002, ge=-1, le=65535, description="Port for Prometheus, over HTTP; 0 picks a free one, -1: no metrics."
    )
    recheck_seconds: float = Field(
        60.0, ge=0, description="While serving, a case of the contract is repeated at this interval; 0: never."
    )
    require_signature: Path | None = Field(
        None, description="Serve only what was signed with the private key of this Ed25519 public key (PEM)."
    )
    device: Device = Field("auto", description="cpu, cuda, or auto: CUDA if it works, and said if it does not.")
    precision: Precision = Field("fp32", description="Which of the bundle's precisions to serve.")
    attentions: bool = Field(
        False, description="Load and verify the attention weights at the start, not when somebody first asks for them."
    )
    threads: int = Field(
        0, ge=0, description="Groups computed at once; 0: one on each CPU this process may use, two on a GPU."
    )
    max_queue_tokens: int = Field(
        65536, ge=1, description="Tokens that may wait; more is refused with RESOURCE_EXHAUSTED."
    )
    max_message_mib: int = Field(64, ge=1, le=2047, description="Largest gRPC message either way, in MiB.")
    linger_seconds: float = Field(
        1.0, ge=0, description="After SIGTERM: how long to go on taking calls while load balancers notice."
    )
    grace_seconds: float = Field(30.0, ge=0, description="After that: how long calls in flight may take to finish.")
