"""The models of a repository, as they are loaded, and as new versions take the place of old ones."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from bnfold.deployment.repository import DeployedModel, load_version, model_folders, read_repository, warnings_of
from bnfold.errors import BnfoldError, RepositoryError
from bnfold.serving.loading import load
from bnfold.serving.options import ServeOptions
from bnfold.serving.service import ServedModel, Service
from bnfold.serving.sessions import target_of

_LOG = logging.getLogger("bnfold.serve")

_Result = TypeVar("_Result")


class Fleet:
    """What of a repository is served.

    Args:
        repository: the folder.
        options: how to serve it.
        service: where its models are put.
    """

    def __init__(self, repository: Path, options: ServeOptions, service: Service) -> None:
        self.service = service
        self._repository, self._options = repository, options
        self._told: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def models(self) -> tuple[tuple[str, int, str], ...]:
        """Each model that is served, with its version and what it runs on."""
        return tuple(
            (model.name, model.deployed.version, target_of(model.deployed, self._options))
            for model in self.service.models
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the repository is not served, and what is served without having been checked."""
        unchecked = (
            f"{model.name} version {model.deployed.version} was deployed without proof and is served unchecked"
            for model in self.service.models
            if model.deployed.golden is None
        )
        return (*warnings_of(self._repository), *unchecked)

    async def load(self) -> None:
        """Load every model.

        Raises:
            BnfoldError: one of them cannot be served, or there is none.
        """
        deployed = await _abandonable(read_repository, self._repository)
        if not deployed:
            raise RepositoryError(f"{self._repository} holds no model; put one there with `bnfold deploy`")
        for model in deployed:
            await self._load(model)

    async def refresh(self) -> None:
        """Serve what the repository serves now. A version that cannot be loaded leaves the one before it in place."""
        try:
            await self._refresh()
        except (BnfoldError, OSError) as error:
            self._tell(str(error))
        except Exception:  # what is served goes on being served, whatever goes wrong beside it
            _LOG.exception("a look at %s failed", self._repository)

    async def _refresh(self) -> None:
        folders = await _abandonable(model_folders, self._repository)
        served = {model.name: model.deployed.version for model in self.service.models}
        for folder in folders:
            if folder.served is None or folder.served == served.get(folder.name):
                continue
            try:
                await self._load(await _abandonable(load_version, folder, folder.served))
                _LOG.info("%s is served in version %d now", folder.name, folder.served)
            except BnfoldError as error:
                self._tell(f"{folder.name} version {folder.served} is not served: {error}")
        for name in served.keys() - {folder.name for folder in folders if folder.served is not None}:
            gone = self.service.take(name)
            if gone is not None:
                _LOG.info("%s is in the repository no longer, and is not served", name)
                self._close(gone)

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*self._closing, *(model.close(0) for model in self.service.models))

    async def _load(self, model: DeployedModel) -> None:
        sessions = await _abandonable(load, model, self._options)
        before = self.service.put(ServedModel(model, sessions, self.service.metrics))
        if before is not None:
            self._close(before)

    def _close(self, model: ServedModel) -> None:
        task = asyncio.create_task(model.close(self._options.drain))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _tell(self, sentence: str) -> None:
        """Log a failure once, not with each look."""
        if sentence not in self._told:
            self._told.add(sentence)
            _LOG.error("%s", sentence)


async def _abandonable(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Call it in a thread that the program does not wait for when it ends.

    A session of a large model may take minutes to build, and a file long to hash; nothing ends that. The threads of
    :func:`asyncio.to_thread` would hold up the end that long.
    """
    outcome: Future[_Result] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="bnfold-load", daemon=True).start()
    return await asyncio.wrap_future(outcome)
