"""A folder of models, NAME/VERSION/: loads, swaps and unloads versions.

A version takes over when it is verified and warm, and the one before it is unloaded when its requests are finished. A
version that fails never takes over; the index says why. A single bundle is a repository of one model.
"""

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from heed.bundle import BundleError, Manifest, read_manifest
from heed.bundle.contract import Report, StoredCases
from heed.server.engine.host import settle_memory
from heed.server.errors import FailedPrecondition, HeedError, NotFound, StartError
from heed.server.repository.attention_weights import Attentions
from heed.server.repository.folders import (
    BundleFolder,
    FileStates,
    find_bundle_folders,
    passed_over,
    why_nothing_is_there,
)
from heed.server.repository.periodic_verification import Recheck
from heed.server.repository.registry import ModelRegistry, ModelVersion, ServedModel, State
from heed.server.repository.verification import OutOfMemory, VerifiedModel, load
from heed.server.requests.limits import RequestLimits
from heed.server.requests.preprocess import Preprocessor
from heed.server.scheduling.scheduler import Scheduler
from heed.server.scheduling.workers import Workers
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics, ServedVersion

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
    """Belongs to the event loop's thread; what takes long is done in others."""

    def __init__(self, settings: Settings, registry: ModelRegistry, metrics: Metrics) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        metrics.watch_failures(lambda: len(registry.failures))
        self._workers: Workers | None = None
        self._one_at_a_time = asyncio.Lock()
        self._failed: dict[BundleFolder, FileStates] = {}  # not tried again until they change
        self._seen: dict[BundleFolder, FileStates] = {}  # by the watch, at its last look
        self._passed_over: set[str] = set()  # what the log has told of
        self._unloaded: set[str] = set()  # by a caller: the watch does not load them again
        self._retiring: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._started = False

    async def start(self) -> None:
        """Loads the newest versions, and from then on watches the folder if the settings say so.

        Raises:
            BundleError, StartError, DeviceError: nothing can be served.
        """
        bundle = self._settings.bundle
        there = os.path.lexists(bundle)
        folders = await asyncio.to_thread(find_bundle_folders, bundle) if there else []
        if not there or not (folders or self._may_come):
            raise StartError(why_nothing_is_there(bundle))
        for name in {folder.name: folder for folder in reversed(folders)}.values():  # the newest of each model
            self._announce(name)
        errors = await self.refresh()
        self._started = not errors or any(one.state is State.READY for one in self._registry.all())
        if not self._started:
            raise errors[0] if len(errors) == 1 else StartError("; ".join(map(str, errors)))
        for (failed, version), reason in self._registry.failures.items():
            _log_failure(failed, version, reason)
        self._check_default({folder.name for folder in folders})
        if self._settings.watch_seconds:
            self._watching = asyncio.create_task(self._watch(self._settings.watch_seconds))

    async def refresh(self, only: str = "", settled: bool = False) -> list[Exception]:
        """Serves the versions that the folder holds now, and returns why some are not served.

        Args:
            only: this model; all if empty.
            settled: skip folders that have changed since the last call: they may still be copied.

        Raises:
            BundleError, StartError: the folder cannot be read. Everything stays as it is.
        """
        async with self._one_at_a_time:
            folders = await self._find_folders()
            names = {folder.name for folder in folders} | set(self._registry.names)
            names |= {name for name, _ in self._registry.failures}
            errors: list[Exception] = []
            for name in sorted(names - self._unloaded):
                if only in ("", name):
                    errors += await self._refresh_model(name, [one for one in folders if one.name == name], settled)
            return errors

    async def load(self, name: str) -> None:
        """Serves the newest version, again or for the first time.

        Raises:
            NotFound: there is no such model.
            FailedPrecondition: it cannot be loaded, or callers may not do this.
        """
        self._check_control()
        folders = [folder for folder in await self._find_folders() if folder.name == name]
        if not folders:
            raise NotFound(f"model {name!r} is not in the repository")
        self._unloaded.discard(name)
        for folder in folders:
            self._failed.pop(folder, None)
        await self.refresh(only=name)
        if reason := self._registry.failures.get((name, folders[0].version)):
            raise FailedPrecondition(f"version {folders[0].version} of model {name!r} is not served: {reason}")

    async def unload(self, name: str) -> None:
        """Unloads a model, until a caller loads it again or the server restarts. Admitted requests are finished.

        Raises:
            NotFound: there is no such model.
            FailedPrecondition: callers may not do this.
        """
        self._check_control()
        async with self._one_at_a_time:
            if name not in self._registry.names:
                raise NotFound(f"model {name!r} is not served here")
            self._unloaded.add(name)
            for version in self._registry.all(name):
                self._retire(version)

    async def index(self) -> list[IndexEntry]:
        """Everything there is, and why some of it is not served."""
        states = {(folder.name, folder.version): State.UNAVAILABLE for folder in await self._find_folders()}
        states |= {(one.name, one.version): one.state for one in reversed(self._registry.all())}
        return [self._entry(name, version, states[name, version]) for name, version in sorted(states)]

    async def close(self) -> None:
        """Returns when every admitted request is answered."""
        if self._watching:
            self._watching.cancel()
        for version in self._registry.all():
            self._retire(version)
        if self._retiring:
            await asyncio.wait(self._retiring)
        if self._workers:
            self._workers.close()

    async def _find_folders(self) -> list[BundleFolder]:
        """Those to be served; the log tells of those that are not, once each."""
        folders = await asyncio.to_thread(find_bundle_folders, self._settings.bundle)
        for line in await asyncio.to_thread(passed_over, self._settings.bundle):
            if line not in self._passed_over:
                self._passed_over.add(line)
                log.warning("%s", line)
        return folders

    @property
    def _may_come(self) -> bool:
        """Whether models may be loaded after the start."""
        return bool(self._settings.watch_seconds or self._settings.repository_control)

    def _check_default(self, names: set[str]) -> None:
        """The default model must be in the repository, unless it may come later."""
        default = self._settings.default_model
        if default in ("", *names):
            return
        message = f"--default-model {default}: there is no such model, only {', '.join(sorted(names)) or 'none'}"
        if not self._may_come:
            raise StartError(message)
        log.warning("%s; calls that name no model are refused until it comes", message)

    def _check_control(self) -> None:
        if not self._settings.repository_control:
            raise FailedPrecondition("callers may not load and unload models here; --repository-control lets them")

    def _entry(self, name: str, version: int, state: State) -> IndexEntry:
        if reason := self._registry.failures.get((name, version)):
            return IndexEntry(name, version, state, reason, failed=True)
        if state is not State.UNAVAILABLE:
            served = next((one for one in self._registry.all(name) if one.version == version), None)
            return IndexEntry(name, version, state, served.drift if served else "")
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
            except Exception:  # a defect of ours: it is logged, and the watch goes on
                log.exception("the repository could not be looked at; everything stays as it is")

    def _announce(self, folder: BundleFolder) -> None:
        """Callers who come while it is loading get UNAVAILABLE. Errors are reported when it is loaded."""
        with suppress(BundleError, OSError):
            self._registry.add(ModelVersion(folder.renamed(read_manifest(folder.path))))

    async def _refresh_model(self, name: str, folders: list[BundleFolder], settled: bool) -> list[Exception]:
        """Serves the newest versions that can be served, and then retires the others, but none while its successor is
        still being copied."""
        kept: list[ModelVersion] = []
        errors: list[Exception] = []
        some_unsettled = False
        for folder in folders:
            if len(kept) == self._settings.versions:
                break
            version, error = await self._serve(folder, settled)
            kept += [version] if version else []
            errors += [error] if error else []
            some_unsettled |= not version and not error and folder not in self._failed
        for version in self._registry.all(name):
            if version not in kept and (not some_unsettled or len(kept) == self._settings.versions):
                self._retire(version)
        self._forget_failures(name, {folder.version for folder in folders})
        return errors

    def _forget_failures(self, name: str, versions: set[int]) -> None:
        """Of versions that are in the repository no longer."""
        for key in [key for key in self._registry.failures if key[0] == name and key[1] not in versions]:
            del self._registry.failures[key]

    async def _serve(self, folder: BundleFolder, settled: bool) -> tuple[ModelVersion | None, Exception | None]:
        """The version that is served from this folder from now on, if one can be, and what is wrong with its files."""
        ready = [one for one in self._registry.all(folder.name) if one.state is State.READY]
        current = next((one for one in ready if one.version == folder.version), None)
        files: FileStates = ()
        try:
            files = await asyncio.to_thread(folder.files)
            if (current and current.files == files) or self._failed.get(folder) == files:
                return current, None
            if settled and self._seen.get(folder) != files:
                self._seen[folder] = files
                self._failed.pop(folder, None)  # its files have changed
                return current, None
            return await self._load(folder, files), None
        except Exception as error:
            self._fail(folder, files, error)
            return current, error

    async def _load(self, folder: BundleFolder, files: FileStates) -> ModelVersion:
        own = read_manifest(folder.path)
        self._log_other_name(folder, own)
        manifest = folder.renamed(own)
        announced = [one for one in self._registry.all(folder.name) if one.state is State.LOADING]
        version = next((one for one in announced if one.version == folder.version), None)
        if version is None:
            version = ModelVersion(manifest)
            self._registry.add(version)
        version.files = files
        log.info("version %d of %s is being verified", folder.version, folder.name)
        try:
            verified = await asyncio.to_thread(load, folder.path, self._settings, manifest)
            await self._take_over(version, verified)
        except BaseException:
            self._registry.remove(version)
            raise
        return version

    def _log_other_name(self, folder: BundleFolder, own: Manifest) -> None:
        if (own.name, own.version) != (folder.name, folder.version):
            log.warning(
                "%s says it is %s version %d; it is served as %s version %d",
                *(folder.path, own.name, own.version, folder.name, folder.version),
            )

    async def _take_over(self, version: ModelVersion, verified: VerifiedModel) -> None:
        """The model answers from now on. The one that was served as the same version before is retired."""
        served = self._make_served(verified)
        if self._settings.attentions:
            _, proof = await served.attentions.loaded()
            verified = replace(verified, report=Report(verified.report.findings + proof.findings))
        cases = await asyncio.to_thread(StoredCases, verified.model.folder, at_start=True)
        served.metrics.contract.compared(verified.report.findings)
        version.verified, version.served, version.state = verified, served, State.READY
        log.info("version %d of %s is ready", version.version, version.name)
        for other in self._registry.all(version.name):
            if other.version == version.version and other is not version:
                self._retire(other)
        self._registry.failures.pop((version.name, version.version), None)
        if seconds := self._settings.recheck_seconds:
            drifted = partial(self._registry.set_drift, version) if self._settings.on_drift == "unready" else None
            recheck = Recheck(served.model, served.scheduler, cases, served.metrics.contract, seconds, drifted)
            version.recheck = asyncio.create_task(recheck.run())

    def _make_served(self, verified: VerifiedModel) -> ServedModel:
        """The model with its queues and its metrics."""
        model, tokens = verified.model, self._settings.max_queue_tokens
        manifest, workers = model.manifest, self._workers_for(verified)
        labels = ServedVersion(
            manifest.name, str(manifest.version), model.digest, model.precision, model.session.provider
        )
        metrics = self._metrics.add(labels, workers.threads)
        scheduler = Scheduler(model.graphs.run, verified.warmup.policy, workers, tokens, [metrics])
        metrics.watch(scheduler)
        preprocessor = Preprocessor(manifest, model.tokenizer, RequestLimits.of(self._settings))
        attentions = Attentions(model, tokens, metrics.statistics)
        return ServedModel(model, scheduler, attentions, preprocessor, metrics)

    def _workers_for(self, verified: VerifiedModel) -> Workers:
        """The same for all models. The device of the first one decides how many threads there are."""
        self._workers = self._workers or Workers(verified.threads)
        return self._workers

    def _fail(self, folder: BundleFolder, files: FileStates, error: Exception) -> None:
        if not isinstance(error, OutOfMemory):  # then it is tried again
            self._failed[folder] = files
        reason = str(error) if isinstance(error, BundleError | HeedError | OSError) else repr(error)
        self._registry.failures[folder.name, folder.version] = reason
        self._metrics.load_failed(folder.name)
        if self._started:  # a start that fails tells it itself
            _log_failure(folder.name, folder.version, reason)

    def _retire(self, version: ModelVersion) -> None:
        """It admits nothing more, and is unloaded when every admitted request is answered."""
        if version.state is State.UNLOADING:
            return
        version.state = State.UNLOADING
        if version.drift:
            self._registry.set_drift(version, "")
        if version.served is None:
            return self._registry.remove(version)
        if version.recheck:
            version.recheck.cancel()
        task = asyncio.create_task(self._unload(version, version.served))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _unload(self, version: ModelVersion, served: ServedModel) -> None:
        await served.close()
        self._metrics.remove(served.metrics)
        self._registry.remove(version)
        log.info("version %d of %s is unloaded", version.version, version.name)
        version.verified = version.served = version.recheck = None  # nothing holds the model any more
        del served
        settle_memory()


def _log_failure(name: str, version: int, reason: str) -> None:
    log.error("version %d of %s is not served: %s", version, name, reason)
