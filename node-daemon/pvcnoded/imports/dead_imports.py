"""Imports whose process is gone: their volumes are removed, and who may still look is told why."""

import logging
from collections.abc import Mapping

from sqlalchemy import select

from pvccommon.database import Database
from pvccommon.errors import PvcError
from pvccommon.models import Image, ImageState
from pvccommon.storage import get_pool
from pvccommon.storage.pool import StoragePool
from pvcnoded.imports.image_rows import UPLOAD, ImageRows, remove_image, remove_volumes, restarted
from pvcnoded.lease import Owner

logger = logging.getLogger("pvc.sweeper")


def undo_imports_of_dead(database: Database, pools: Mapping[str, StoragePool], me: Owner) -> None:
    """Undo this node's imports that nobody carries on. Errors of one do not stop the others."""
    with database.session() as session:
        query = select(Image).where(Image.state == ImageState.IMPORTING.value)
        images = [image for image in session.execute(query.order_by(Image.id)).scalars() if image.owner]
    for image in images:
        owner = Owner.parse(image.owner)
        if owner.node != me.node or owner.is_alive():
            continue
        logger.warning("image %s: the process that imported it is gone; undoing it", image.name)
        try:
            undo_import(ImageRows(database, me.node, str(me)), get_pool(pools, image.pool), image)
        except PvcError as exc:
            logger.error("image %s: could not be undone, trying again: %s", image.name, exc.message)


def undo_import(rows: ImageRows, pool: StoragePool, image: Image) -> None:
    """Of an upload nothing stays: its client begins anew. Of what was fetched the row stays, and says why."""
    if image.source == UPLOAD:
        remove_image(rows.database, pool, image.id)
    else:
        remove_volumes(rows.database, pool, image.id)
        rows.fail(image.id, restarted(f"import image {image.name}"))
