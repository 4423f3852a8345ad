"""What a request needs of the outside: configuration, database, queue."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

from celery import Celery
from flask import Flask, current_app
from sqlalchemy.orm import Session

from pvcapid.long_requests import LongRequests
from pvccommon.config import Config
from pvccommon.database import Database
from pvccommon.queue import create_celery

EXTENSION = "pvc"


@dataclass
class Services:
    """Made once per process; connections are made when first used.

    `stopping` tells long answers (a followed log) that the server wants to end.
    """

    config: Config
    database: Database
    queue: Celery
    long_requests: LongRequests
    stopping: Callable[[], bool] = lambda: False


def init_app(app: Flask, config: Config) -> None:
    app.extensions[EXTENSION] = Services(
        config, Database(config.database), create_celery(config.queue), LongRequests(config.api.threads)
    )


def services() -> Services:
    return cast(Services, current_app.extensions[EXTENSION])


def reading() -> AbstractContextManager[Session]:
    """A transaction that changes nothing; for changes see `audit.changing`."""
    return services().database.session()
