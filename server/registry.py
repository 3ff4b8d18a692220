"""The models a server has, and what state each is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from bundle import Manifest
from server.errors import NotFound, Unavailable
from server.serving import Serving


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass
class Served:
    """One model's place. Something serves there from the moment it is ready."""

    manifest: Manifest
    state: State = State.LOADING
    serving: Serving | None = None

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return str(self.manifest.version)


@dataclass
class Registry:
    """Finds models by name and version."""

    served: list[Served] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return bool(self.served) and all(one.state is State.READY for one in self.served)

    def find(self, name: str, version: str) -> Served:
        """
        Raises:
            NotFound: there is no such model or version; the message says which there are.
        """
        named = [one for one in self.served if name in ("", one.name)]
        if not named:
            known = ", ".join(one.name for one in self.served)
            raise NotFound(f"model {name!r} is not served here, only {known}")
        for one in named:
            if version in ("", one.version):
                return one
        known = ", ".join(one.version for one in named)
        raise NotFound(f"version {version!r} of model {name!r} is not served here, only {known}")

    @contextmanager
    def use(self, name: str, version: str = "") -> Iterator[Serving]:
        """What answers as this model. It stays until the end of the `with`.

        Raises:
            NotFound: see `find`.
            Unavailable: it is not ready yet, or no longer.
        """
        one = self.find(name, version)
        if one.state is not State.READY or one.serving is None:
            raise Unavailable(f"model {name!r} is {one.state.value}; try again, or another server")
        with one.serving.in_use() as serving:
            yield serving
