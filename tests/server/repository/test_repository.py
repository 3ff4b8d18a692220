"""Many models in one server: which versions are served, and how one takes the place of another."""

import asyncio
import os
import shutil
import weakref
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heed.server.engine.host import settle_memory
from heed.server.errors import FailedPrecondition, NotFound, StartError
from heed.server.repository.folders import BundleFolder, find_bundle_folders, passed_over
from heed.server.repository.model_repository import ModelRepository
from heed.server.repository.registry import ModelRegistry, State
from heed.server.repository.verification import memory_needed
from heed.server.settings import Settings
from heed.server.telemetry.metrics import Metrics

TEXT = np.array([b"the quick fox"], object)


def place(bundle: Path, repository: Path, name: str, version: int) -> Path:
    """A version, there at once and whole, as `heed export` and `mv` do it."""
    folder = repository / name / str(version)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, repository / ".copy")
    os.rename(repository / ".copy", folder)
    return folder


def damage(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> Any:
    """A repository that has started, and its registry."""
    registry = ModelRegistry(settings.get("default_model", ""))
    repository = ModelRepository(Settings(bundle=folder, device="cpu", **settings), registry, Metrics())
    try:
        await repository.start()
        yield repository, registry
    finally:
        await repository.close()


async def embed(registry: ModelRegistry, name: str, version: str = "") -> np.ndarray:
    with registry.use(name, version) as served:
        request = served.preprocessor.preprocess({"text": TEXT}, ["last_hidden_state"])
        result = await served.scheduler.admit().submit(request.rows)
        return request.assemble(result.answers)["last_hidden_state"]


def states(registry: ModelRegistry) -> dict[tuple[str, int], State]:
    return {(one.name, one.version): one.state for one in registry.all()}


async def lines(repository: ModelRepository) -> list[tuple[str, int, str, str]]:
    return [(entry.name, entry.version, entry.state.value, entry.reason) for entry in await repository.index()]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_versions_are_positive_numbers_and_the_newest_comes_first(tiny_bundle: Path, repository: Path) -> None:
    for name in ("b/2", "b/10", "b/0", "b/01", "b/next", "a/1", ".a/1", "a b/1"):
        (repository / name).mkdir(parents=True)
    (repository / "a" / "2").touch()
    found = [(one.name, one.version) for one in find_bundle_folders(repository)]
    assert found == [("a", 1), ("b", 10), ("b", 2)]
    (bundle,) = find_bundle_folders(tiny_bundle)
    assert (bundle.name, bundle.version, bundle.path) == ("tiny", 1, tiny_bundle)


def test_folders_that_are_passed_over_are_told(tiny_bundle: Path, repository: Path) -> None:
    for name in ("b/2", "b/01", "b/next", "a b/1", "empty", "lost+found", ".git/1"):
        (repository / name).mkdir(parents=True)
    shutil.copytree(tiny_bundle, repository / "flat")
    (repository / "README.md").touch()
    told = [line.removeprefix(f"{repository}/") for line in passed_over(repository)]
    assert [line.split(": ")[0] for line in told] == [
        f"{name} is passed over" for name in ("a b", "b/01", "b/next", "empty", "flat")
    ]
    assert told[-1].endswith(f"move it to {repository / 'flat/1'}")
    assert passed_over(tiny_bundle) == []


async def test_the_newest_version_is_served_and_the_index_tells_of_the_others(
    tiny_bundle: Path, tiny_cls_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 2)
    place(tiny_cls_bundle, repository, "words", 10)
    place(tiny_bundle, repository, "other", 1)
    async with serving(repository) as (served, registry):
        assert states(registry) == {("other", 1): State.READY, ("words", 10): State.READY}
        other = await embed(registry, "other")
        assert not np.array_equal(await embed(registry, "words"), other)  # they are of different models
        with pytest.raises(NotFound, match="version '2' of model 'words' is not served here, only 10"):
            await embed(registry, "words", "2")
        with pytest.raises(NotFound, match="model 'word' is not served here, only other, words"):
            await embed(registry, "word")
        with pytest.raises(FailedPrecondition, match=r"2 models are served here \(other, words\)"):
            await embed(registry, "")
        assert await lines(served) == [
            ("other", 1, "ready", ""),
            ("words", 2, "unavailable", "newer ones are served, and --versions is 1"),
            ("words", 10, "ready", ""),
        ]
        (entry,) = registry.all("words")
        assert entry.served
        assert (entry.served.model.manifest.name, entry.served.model.manifest.version) == ("words", 10)
    async with serving(repository, versions=2, default_model="words") as (_, registry):
        assert states(registry) == dict.fromkeys([("other", 1), ("words", 2), ("words", 10)], State.READY)
        assert np.array_equal(await embed(registry, "words", "2"), other)
        assert np.array_equal(await embed(registry, ""), await embed(registry, "words", "10"))


async def test_a_version_that_does_not_hold_never_takes_over_until_its_files_are_right(
    tiny_bundle: Path, tiny_cls_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 1)
    async with serving(repository) as (served, registry):
        before = await embed(registry, "words")
        damage(place(tiny_cls_bundle, repository, "words", 2))
        (error,) = await served.refresh()
        assert "tokenizer.json is altered" in str(error)
        assert await served.refresh() == []  # not tried again as it is
        assert np.array_equal(await embed(registry, "words"), before)
        assert [line[1:3] for line in await lines(served)] == [(1, "ready"), (2, "unavailable")]
        with pytest.raises(FailedPrecondition, match=r"version 2 of model 'words' is not served: .*altered"):
            await embed(registry, "words", "2")
        damage(place(tiny_bundle, repository, "other", 1))
        await served.refresh()
        assert ("other", 1) in registry.failures
        shutil.rmtree(repository / "other")
        await served.refresh()
        assert ("other", 1) not in registry.failures  # of what is gone nothing is wrong any more

        shutil.rmtree(repository / "words" / "2")
        place(tiny_cls_bundle, repository, "words", 2)
        assert await served.refresh() == []
        assert not np.array_equal(await embed(registry, "words"), before)
        assert [line[1:3] for line in await lines(served)][1] == (2, "ready")

        damage(repository / "words" / "2")  # while it is served: what is in memory goes on
        assert len(await served.refresh()) == 1
        assert states(registry)["words", 2] is State.READY
        assert "altered" in (await lines(served))[1][3]


async def test_at_a_start_an_older_version_stands_in_for_one_that_does_not_hold(
    tiny_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 1)
    damage(place(tiny_bundle, repository, "words", 2))
    async with serving(repository) as (_, registry):
        assert states(registry) == {("words", 1): State.READY}
    shutil.rmtree(repository / "words" / "1")
    with pytest.raises(Exception, match="altered"):
        async with serving(repository):
            pass


async def test_the_old_version_finishes_what_it_has_taken(
    tiny_bundle: Path, tiny_cls_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 1)
    async with serving(repository) as (served, registry):
        with registry.use("words") as old:
            request = old.preprocessor.preprocess({"text": TEXT}, ["last_hidden_state"])
            place(tiny_cls_bundle, repository, "words", 2)
            await served.refresh()
            assert states(registry) == {("words", 2): State.READY, ("words", 1): State.UNLOADING}
            assert (await old.scheduler.admit().submit(request.rows)).answers
        await asyncio.sleep(0.2)
        assert states(registry) == {("words", 2): State.READY}


async def test_nothing_is_left_of_a_model_that_has_gone(
    tiny_bundle: Path, tiny_cls_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 1)
    async with serving(repository) as (served, registry):
        settle_memory()  # as at the end of a start
        await embed(registry, "words")
        with registry.use("words") as old:
            model = weakref.ref(old.model)
        del old
        place(tiny_cls_bundle, repository, "words", 2)
        await served.refresh()
        await asyncio.sleep(0.5)
        assert states(registry) == {("words", 2): State.READY}
        assert model() is None


async def test_callers_load_and_unload_if_they_may(tiny_bundle: Path, repository: Path) -> None:
    place(tiny_bundle, repository, "words", 1)
    place(tiny_bundle, repository, "other", 1)
    async with serving(repository) as (served, _):
        for call in (served.load, served.unload):
            with pytest.raises(FailedPrecondition, match="--repository-control"):
                await call("words")
    async with serving(repository, repository_control=True) as (served, registry):
        await served.unload("words")
        with pytest.raises(NotFound, match="not served here, only other"):
            await embed(registry, "words")
        await served.refresh()  # as a watch does
        assert ("words", 1, "unavailable", "unloaded by a caller") in await lines(served)
        await served.load("words")
        assert ("words", 1, "ready", "") in await lines(served)
        for name in ("nothing", "../words", "words/1", ""):
            with pytest.raises(NotFound):
                await served.load(name)
        damage(place(tiny_bundle, repository, "words", 2))
        with pytest.raises(FailedPrecondition, match="altered"):
            await served.load("words")
        assert ("words", 1, "ready", "") in await lines(served)


async def test_a_model_that_would_not_fit_is_refused_until_there_is_room(
    tiny_bundle: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tiny_bundle, repository, "words", 1)
    with pytest.raises(StartError, match=r"needs about 0 MiB, and [0-9]+ of 1 MiB are taken"):
        async with serving(repository, memory_mib=1):
            pass
    place(tiny_bundle, repository, "other", 1)
    async with serving(repository) as (served, registry):
        place(tiny_bundle, repository, "words", 2)
        monkeypatch.setattr("heed.server.repository.verification.usable_memory", lambda: 1)
        assert "never fits into the 0 MiB that there are" in str(*await served.refresh())
        assert states(registry)["words", 1] is State.READY
        monkeypatch.undo()
        assert await served.refresh() == []
        assert states(registry)["words", 2] is State.READY


async def test_a_watch_waits_until_nobody_writes_any_more(tiny_bundle: Path, repository: Path) -> None:
    place(tiny_bundle, repository, "words", 1)
    async with serving(repository) as (served, registry):
        folder = place(tiny_bundle, repository, "words", 2)
        tokenizer = (folder / "tokenizer.json").read_text()
        damage(folder)
        assert await served.refresh(settled=True) == []
        (folder / "tokenizer.json").write_text(tokenizer)
        assert await served.refresh(settled=True) == []
        assert ("words", 2) not in states(registry)
        assert await served.refresh(settled=True) == []
        assert states(registry)["words", 2] is State.READY


async def test_a_default_model_that_is_not_there_is_an_error_unless_it_may_come(
    tiny_bundle: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(tiny_bundle, repository, "tiny", 1)
    with pytest.raises(StartError, match="--default-model smell: there is no such model, only tiny"):
        async with serving(repository, default_model="smell"):
            pass
    async with serving(repository, default_model="smell", watch_seconds=60):
        assert "only tiny; calls that name no model are refused until it comes" in caplog.text


async def test_going_back_to_an_older_version_leaves_no_gap(tiny_bundle: Path, repository: Path) -> None:
    place(tiny_bundle, repository, "tiny", 1)
    place(tiny_bundle, repository, "tiny", 2)
    async with serving(repository) as (served, registry):
        shutil.rmtree(repository / "tiny" / "2")
        assert await served.refresh(settled=True) == []  # it has not looked at version 1 before
        assert states(registry) == {("tiny", 2): State.READY}
        assert await served.refresh(settled=True) == []
        assert states(registry)[("tiny", 1)] is State.READY
        assert states(registry).get(("tiny", 2)) in (State.UNLOADING, None)


async def test_a_watch_outlives_whatever_it_meets(
    tiny_bundle: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place(tiny_bundle, repository, "tiny", 1)
    async with serving(repository, watch_seconds=0.01) as (_, registry):
        errors: list[Exception] = [OSError("stale"), ZeroDivisionError("a defect")]

        def fail_first(folder: Path) -> list[BundleFolder]:
            if errors:
                raise errors.pop(0)
            return find_bundle_folders(folder)

        monkeypatch.setattr("heed.server.repository.model_repository.find_bundle_folders", fail_first)
        async with asyncio.timeout(60):
            while errors:
                await asyncio.sleep(0.01)
            place(tiny_bundle, repository, "tiny", 2)
            while ("tiny", 2) not in states(registry):
                await asyncio.sleep(0.01)
    assert "stale; everything stays as it is" in caplog.text
    assert "a defect" in caplog.text


def test_a_file_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    file, other = tmp_path / "weights", tmp_path.parent / f"{tmp_path.name}.other"
    for path in (file, other):
        path.write_bytes(b"1234")
        os.utime(path, (1, 1))
    before = BundleFolder("tiny", 1, tmp_path).files()
    assert BundleFolder("tiny", 1, tmp_path).files() == before
    os.rename(other, file)
    assert BundleFolder("tiny", 1, tmp_path).files() != before


def test_memory_counts_the_weights_that_graphs_name(tmp_path: Path) -> None:
    (tmp_path / "model.fp32.onnx").write_bytes(b"weights.fp32.data")
    (tmp_path / "model.int8.onnx").write_bytes(b"weights.fp32.data weights.int8.data")
    (tmp_path / "weights.fp32.data").write_bytes(bytes(1000))
    (tmp_path / "weights.int8.data").write_bytes(bytes(100))
    assert memory_needed(tmp_path, "fp32") == 2 * 1017
    assert memory_needed(tmp_path, "int8") == 2 * 1135


async def test_what_happens_to_a_version_is_in_the_log(
    tiny_bundle: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "heed.repository")
    place(tiny_bundle, repository, "tiny", 1)
    async with serving(repository) as (served, _):
        place(tiny_bundle, repository, "tiny", 2)
        await served.refresh()
    told = [message for message in caplog.messages if message.startswith("version")]
    assert told == [
        "version 1 of tiny is being verified",
        "version 1 of tiny is ready",
        "version 2 of tiny is being verified",
        "version 2 of tiny is ready",
        "version 1 of tiny is unloaded",
        "version 2 of tiny is unloaded",
    ]


async def test_a_folder_that_is_gone_changes_nothing_and_a_model_that_is_gone_is_unloaded(
    tiny_bundle: Path, repository: Path
) -> None:
    place(tiny_bundle, repository, "words", 1)
    place(tiny_bundle, repository, "other", 1)
    async with serving(repository) as (served, registry):
        repository.rename(repository.with_name("away"))
        with pytest.raises(StartError, match="cannot be read: No such file"):
            await served.refresh()
        assert set(states(registry).values()) == {State.READY}
        repository.with_name("away").rename(repository)
        shutil.rmtree(repository / "other")
        await served.refresh()
        await asyncio.sleep(0.2)
        assert states(registry) == {("words", 1): State.READY}


async def test_nothing_to_serve_is_an_error_unless_something_may_come(repository: Path) -> None:
    with pytest.raises(StartError, match=r"has no bundle\.json; .* A repository has folders NAME/VERSION/"):
        async with serving(repository):
            pass
    async with serving(repository, watch_seconds=60) as (served, _):
        assert await lines(served) == []
