"""A folder of models, NAME/VERSION/, and which of them are served.

A version takes over when it is verified and warm, and the one before it goes when its requests are finished. A version
that fails never takes over; the index tells why. A single bundle is a repository of one model.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, replace

from heed.bundle import BundleError, Manifest, read_manifest
from heed.bundle.contract import Report, StoredCases
from heed.bundle.manifest import MANIFEST
from heed.server.engine.host import settle_memory
from heed.server.errors import FailedPrecondition, HeedError, NotFound, StartError
from heed.server.repository.attentions import Attentions
from heed.server.repository.folders import BundleFolder, Files, find_bundle_folders
from heed.server.repository.loading import NoRoom, VerifiedModel, load
from heed.server.repository.recheck import Recheck
from heed.server.repository.registry import ModelRegistry, ModelVersion, State
from heed.server.repository.served_model import ServedModel
from heed.server.requests.limits import Limits
from heed.server.scheduling.model_queue import observed
from heed.server.scheduling.scheduler import Scheduler
from heed.server.scheduling.workers import Workers
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics
from heed.server.telemetry.statistics import Statistics

log = logging.getLogger("heed.repository")


@dataclass(frozen=True)
class IndexEntry:
    """A line of the index."""

    name: str
    version: int
    state: State
    reason: str = ""
    failed: bool = False  # it was to be served, or its files have changed, and it cannot be


class ModelRepository:
    """Loads, swaps and unloads. It belongs to the event loop's thread; what takes long is done in others."""

    def __init__(self, settings: Settings, registry: ModelRegistry, metrics: Metrics) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        metrics.watch_failures(lambda: len(registry.failures))
        self._workers: Workers | None = None
        self._one_at_a_time = asyncio.Lock()
        self._failed: dict[BundleFolder, Files] = {}  # not tried again until they change
        self._seen: dict[BundleFolder, Files] = {}  # by the watch, the last time it looked
        self._unloaded: set[str] = set()  # by a caller: no watch loads them again
        self._retiring: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads what is to be served, and from then on watches the folder, if that is wanted.

        Raises:
            BundleError, StartError, DeviceError: nothing can be served.
        """
        if not self._settings.bundle.exists():
            raise self._nothing_there()
        places = await self._places()
        for name in {place.name: place for place in reversed(places)}.values():  # the newest of each model
            self._announce(name)
        errors = await self.refresh()
        if errors and not any(one.state is State.READY for one in self._registry.all()):
            raise errors[0] if len(errors) == 1 else StartError("; ".join(map(str, errors)))
        if not places and not (self._settings.watch_seconds or self._settings.repository_control):
            raise self._nothing_there()
        self._check_default({place.name for place in places})
        if self._settings.watch_seconds:
            self._watching = asyncio.create_task(self._watch(self._settings.watch_seconds))

    async def refresh(self, only: str = "", settled: bool = False) -> list[Exception]:
        """Serves what the folder holds now, and returns why some of it is not served.

        Args:
            only: this model; all if empty.
            settled: leave what has changed since the last time alone: somebody may be copying it.

        Raises:
            BundleError, StartError: the folder cannot be read. Everything stays as it is.
        """
        async with self._one_at_a_time:
            places = await self._places()
            names = {place.name for place in places} | set(self._registry.names)
            names |= {name for name, _ in self._registry.failures}
            errors: list[Exception] = []
            for name in sorted(names - self._unloaded):
                if only in ("", name):
                    errors += await self._refresh_model(name, [one for one in places if one.name == name], settled)
            return errors

    async def load(self, name: str) -> None:
        """Serves the newest version, again or for the first time.

        Raises:
            NotFound: there is no such model.
            FailedPrecondition: it cannot be loaded, or callers may not do this.
        """
        self._check_control()
        places = [place for place in await self._places() if place.name == name]
        if not places:
            raise NotFound(f"model {name!r} is not in the repository")
        self._unloaded.discard(name)
        for place in places:
            self._failed.pop(place, None)
        await self.refresh(only=name)
        if reason := self._registry.failures.get((name, places[0].version)):
            raise FailedPrecondition(f"version {places[0].version} of model {name!r} is not served: {reason}")

    async def unload(self, name: str) -> None:
        """Serves a model no longer, until it is loaded again or the server is. What it has taken is finished.

        Raises:
            NotFound: there is no such model.
            FailedPrecondition: callers may not do this.
        """
        self._check_control()
        async with self._one_at_a_time:
            if name not in self._registry.names:
                raise NotFound(f"model {name!r} is not served here")
            self._unloaded.add(name)
            for served in self._registry.all(name):
                self._retire(served)

    async def index(self) -> list[IndexEntry]:
        """Everything there is, and why some of it is not served."""
        states = {(place.name, place.version): State.UNAVAILABLE for place in await self._places()}
        states |= {(one.name, one.version): one.state for one in reversed(self._registry.all())}
        return [self._entry(name, version, states[name, version]) for name, version in sorted(states)]

    async def close(self) -> None:
        """Returns when everything that was taken is answered."""
        if self._watching:
            self._watching.cancel()
        for served in self._registry.all():
            self._retire(served)
        if self._retiring:
            await asyncio.wait(self._retiring)
        if self._workers:
            self._workers.close()

    async def _places(self) -> list[BundleFolder]:
        return await asyncio.to_thread(find_bundle_folders, self._settings.bundle)

    def _nothing_there(self) -> StartError:
        folder = self._settings.bundle
        return StartError(
            f"{folder} has no {MANIFEST}; `heed export SOURCE {folder}` makes a bundle. "
            "A repository has folders NAME/VERSION/ with one each"
        )

    def _check_default(self, names: set[str]) -> None:
        """Whoever names no model shall have one, unless it may come later."""
        default = self._settings.default_model
        if default in ("", *names):
            return
        message = f"--default-model {default}: there is no such model, only {', '.join(sorted(names)) or 'none'}"
        if not (self._settings.watch_seconds or self._settings.repository_control):
            raise StartError(message)
        log.warning("%s; calls that name no model are refused until it comes", message)

    def _check_control(self) -> None:
        if not self._settings.repository_control:
            raise FailedPrecondition("callers may not load and unload models here; --repository-control lets them")

    def _entry(self, name: str, version: int, state: State) -> IndexEntry:
        if reason := self._registry.failures.get((name, version)):
            return IndexEntry(name, version, state, reason, failed=True)
        if state is not State.UNAVAILABLE:
            return IndexEntry(name, version, state)
        if name in self._unloaded:
            return IndexEntry(name, version, state, "unloaded by a caller")
        return IndexEntry(name, version, state, f"newer ones are served, and --versions is {self._settings.versions}")

    async def _watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh(settled=True)
            except (BundleError, StartError, OSError) as error:
                log.warning("%s; everything stays as it is", error)
            except Exception:  # a defect of ours: it shall be seen, and the watch goes on
                log.exception("the repository could not be looked at; everything stays as it is")

    def _announce(self, place: BundleFolder) -> None:
        """Callers who come while it is loading are told so. What is wrong with it will be told when it is loaded."""
        with suppress(BundleError, OSError):
            self._registry.add(ModelVersion(place.renamed(read_manifest(place.folder))))

    async def _refresh_model(self, name: str, places: list[BundleFolder], settled: bool) -> list[Exception]:
        """Serves the newest versions that can be served, and then no others: none goes while its successor is still
        being copied."""
        kept: list[ModelVersion] = []
        errors: list[Exception] = []
        some_wait = False
        for place in places:
            if len(kept) == self._settings.versions:
                break
            served, error = await self._serve(place, settled)
            kept += [served] if served else []
            errors += [error] if error else []
            some_wait |= not served and not error and place not in self._failed
        for served in self._registry.all(name):
            if served not in kept and (not some_wait or len(kept) == self._settings.versions):
                self._retire(served)
        there = {(place.name, place.version) for place in places}
        for key in [key for key in self._registry.failures if key[0] == name and key not in there]:
            del self._registry.failures[key]
        return errors

    async def _serve(self, place: BundleFolder, settled: bool) -> tuple[ModelVersion | None, Exception | None]:
        """What serves this version from now on, if anything can, and what is wrong with its files."""
        ready = [one for one in self._registry.all(place.name) if one.state is State.READY]
        now = next((one for one in ready if one.version == place.version), None)
        files: Files = ()
        try:
            files = await asyncio.to_thread(place.files)
            if (now and now.files == files) or self._failed.get(place) == files:
                return now, None
            if settled and self._seen.get(place) != files:
                self._seen[place] = files
                self._failed.pop(place, None)  # its files are others now
                return now, None
            return await self._load(place, files), None
        except Exception as error:
            self._fail(place, files, error)
            return now, error

    async def _load(self, place: BundleFolder, files: Files) -> ModelVersion:
        own = read_manifest(place.folder)
        self._tell_other_name(place, own)
        manifest = place.renamed(own)
        announced = [one for one in self._registry.all(place.name) if one.state is State.LOADING]
        served = next((one for one in announced if one.version == place.version), None)
        if served is None:
            served = ModelVersion(manifest)
            self._registry.add(served)
        served.files = files
        log.info("version %d of %s is being proven", place.version, place.name)
        try:
            loaded = await asyncio.to_thread(load, place.folder, self._settings, manifest)
            await self._take_over(served, loaded)
        except BaseException:
            self._registry.remove(served)
            raise
        return served

    def _tell_other_name(self, place: BundleFolder, own: Manifest) -> None:
        if (own.name, own.version) != (place.name, place.version):
            log.warning(
                "%s says it is %s version %d; it is served as %s version %d",
                *(place.folder, own.name, own.version, place.name, place.version),
            )

    async def _take_over(self, served: ModelVersion, loaded: VerifiedModel) -> None:
        """The model answers from now on. What answered as the same version before goes."""
        model, tokens = loaded.model, self._settings.max_queue_tokens
        statistics = Statistics()
        attentions = Attentions(model, tokens, statistics)
        if self._settings.attentions:
            _, proof = await attentions.loaded()
            loaded = replace(loaded, report=Report(loaded.report.findings + proof.findings))
        cases = await asyncio.to_thread(StoredCases, model.folder, at_start=True)
        workers = self._workers_for(loaded)
        metrics = self._metrics.add(model, workers.threads)
        run = observed(model.run, statistics, metrics)
        scheduler = Scheduler(run, loaded.warmup.strategy, workers, max_tokens=tokens)
        metrics.watch(scheduler)
        metrics.contract.compared(loaded.report.findings)
        serving = ServedModel(model, scheduler, attentions, statistics, Limits.of(self._settings))
        served.loaded, served.serving, served.state = loaded, serving, State.READY
        log.info("version %d of %s is ready", served.version, served.name)
        for other in self._registry.all(served.name):
            if other.version == served.version and other is not served:
                self._retire(other)
        self._registry.failures.pop((served.name, served.version), None)
        if seconds := self._settings.recheck_seconds:
            served.recheck = asyncio.create_task(Recheck(model, scheduler, cases, metrics.contract, seconds).run())

    def _workers_for(self, loaded: VerifiedModel) -> Workers:
        """The same for all models. The first one says on what they compute, and so how many there are."""
        self._workers = self._workers or Workers(loaded.threads)
        return self._workers

    def _fail(self, place: BundleFolder, files: Files, error: Exception) -> None:
        if not isinstance(error, NoRoom):  # then it is tried again
            self._failed[place] = files
        reason = str(error) if isinstance(error, BundleError | HeedError | OSError) else repr(error)
        self._registry.failures[place.name, place.version] = reason
        self._metrics.failed(place.name)
        log.error("version %d of %s is not served: %s", place.version, place.name, reason)

    def _retire(self, served: ModelVersion) -> None:
        """It takes nothing more. It goes when what it has taken is finished."""
        if served.state is State.UNLOADING:
            return
        served.state = State.UNLOADING
        if served.serving is None:
            return self._registry.remove(served)
        if served.recheck:
            served.recheck.cancel()
        task = asyncio.create_task(self._finish(served))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _finish(self, served: ModelVersion) -> None:
        assert served.serving  # as it was ready
        await served.serving.close()
        self._metrics.remove(served.serving.model)
        self._registry.remove(served)
        log.info("version %d of %s is unloaded", served.version, served.name)
        served.loaded = served.serving = served.recheck = None  # nothing holds the model any more
        settle_memory()
