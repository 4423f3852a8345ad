"""The rows of images that are imported: begun, told how far they are, made ready, failed, removed."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pvccommon import names
from pvccommon.database import Database
from pvccommon.errors import Busy, Exists, PvcError, WrongState
from pvccommon.models import Image, ImageState, ImageVolume, Json, Profile, SystemTemplate, now
from pvccommon.storage.pool import StoragePool

UPLOAD = "upload"
OVA = "ova"  # the type of the profile that comes with an OVA
# In an image's document: the secret part of the address of its upload.
TOKEN = "upload"
# There, too, while it is imported: what is fenced should its node be lost (StoragePool.client).
CLIENT = "client"


@dataclass(frozen=True)
class ImportRequest:
    """What is imported. `size_bytes`: how much the source gives. `system`: which one of an OVA of several.

    `source`: "upload" or a URL.
    """

    name: str
    kind: str
    format: str
    size_bytes: int
    sha256: str | None = None
    system: str | None = None
    source: str = UPLOAD

    @property
    def what(self) -> str:
        return f"import image {self.name}"


@dataclass(frozen=True)
class ImageRows:
    """Begins and ends the imports of one process. All but `begin` are safe to repeat."""

    database: Database
    node: str
    owner: str

    def begin(self, pool: StoragePool, request: ImportRequest, token: str | None = None) -> int:
        """Write the row of a new image; its id. Takes the place of one that has failed. Raises Exists."""
        image = Image(
            name=request.name,
            kind=request.kind,
            format=request.format,
            pool=pool.name,
            node=None if pool.shared else self.node,
            source=request.source,
            size_bytes=request.size_bytes or None,
            percent=0.0,
            owner=self.owner,
            document={key: value for key, value in {TOKEN: token, CLIENT: pool.client()}.items() if value},
        )
        try:
            with self.database.session() as session:
                _drop_failed(session, request.name)
                session.add(image)
                session.flush()
                return int(image.id)
        except IntegrityError as exc:
            why = "there is an image of this name"
            raise Exists(request.what, why, f"see: pvc provisioner image show {request.name}") from exc

    def add_volumes(
        self, image_id: int, pool: StoragePool, disks: Sequence[tuple[str, int]], *, first_position: int = 0
    ) -> list[str]:
        """Write the rows of the volumes that will be made, (disk id, bytes) each; their names."""
        found = [names.image_volume_name(image_id, disk_id) for disk_id, _ in disks]

        def write(session: Session) -> None:
            self._mine(session, image_id)
            for position, ((disk_id, size_bytes), volume) in enumerate(zip(disks, found, strict=True)):
                values = {
                    "position": first_position + position,
                    "disk_id": disk_id,
                    "volume": volume,
                    "size_bytes": size_bytes,
                }
                session.merge(ImageVolume(image=image_id, pool=pool.name, **values))

        self.database.patiently(write)
        return found

    def drop_volume(self, image_id: int, volume: str) -> None:
        """Forget a volume that is gone."""

        def write(session: Session) -> None:
            image = self._mine(session, image_id)
            image.volumes = [kept for kept in image.volumes if kept.volume != volume]

        self.database.patiently(write)

    def show_progress(self, image_id: int, percent: float) -> None:
        """Nothing is lost when the database does not answer."""
        try:
            with self.database.session() as session:
                image = session.get(Image, image_id)
                if image is not None:
                    image.percent = percent
        except PvcError:
            return

    def set_size(self, image_id: int, size_bytes: int) -> None:
        def write(session: Session) -> None:
            self._mine(session, image_id).size_bytes = size_bytes

        self.database.patiently(write)

    def finish(self, image_id: int, sha256: str, document: Json) -> None:
        """The image is ready."""

        def write(session: Session) -> None:
            image = self._mine(session, image_id)
            image.state, image.sha256 = ImageState.READY.value, sha256
            kept = {key: value for key, value in image.document.items() if key != CLIENT}
            image.document = {**kept, **document}
            image.percent = image.owner = None
            image.finished = now()

        self.database.patiently(write)

    def forget(self, image_id: int) -> None:
        """There is nothing left that belongs to the image; its row goes."""

        def write(session: Session) -> None:
            image = session.get(Image, image_id, with_for_update=True)
            if image is not None:
                session.delete(image)

        self.database.patiently(write)

    def fail(self, image_id: int, error: PvcError) -> None:
        """The volumes are gone; the row stays and tells why."""

        def write(session: Session) -> None:
            image = session.get(Image, image_id, with_for_update=True)
            if image is None:
                return
            image.volumes.clear()
            image.state, image.percent, image.owner = ImageState.FAILED.value, None, None
            image.error = {key: error.to_dict()[key] for key in ("kind", "what", "why", "hint")}
            image.finished = now()

        self.database.patiently(write)

    def mine(self) -> set[int]:
        """The images that this process imports."""
        with self.database.session() as session:
            return set(session.execute(select(Image.id).where(Image.owner == self.owner)).scalars())

    def _mine(self, session: Session, image_id: int) -> Image:
        """Raises WrongState when the image was removed, or another process has it."""
        image: Image | None = session.get(Image, image_id, with_for_update=True)
        if image is None or image.owner not in (self.owner, None):
            raise WrongState(f"import image {image_id}", "it was removed meanwhile")
        return image


def restarted(what: str) -> Busy:
    """Why an import under way ended with its process: it may be begun again at once."""
    return Busy(what, "the node daemon was restarted while it was imported", "import it again")


def remove_volumes(database: Database, pool: StoragePool, image_id: int) -> None:
    """Remove the volumes of an image, which nothing uses; the rows stay. Safe to repeat."""
    with database.session() as session:
        image = session.get(Image, image_id)
        volumes = [volume.volume for volume in image.volumes] if image is not None else []
    for volume in volumes:
        if pool.volume_or_none(volume) is not None:
            _remove_volume(pool, volume)


def remove_image(database: Database, pool: StoragePool, image_id: int, *, with_parts: bool = False) -> None:
    """Remove the volumes of an image and then its row. Safe to repeat.

    `with_parts`: also the profile and system template that came with an OVA. Raises WrongState while a
    profile uses it, or clones of it live; then it stays as it is.
    """
    what = f"remove image {image_id}"
    with database.session() as session:
        image = session.get(Image, image_id)
        if image is None:
            return
        what = f"remove image {image.name}"
        _refuse_used(session, image, what, with_parts)
        volumes = [volume.volume for volume in image.volumes]
    _refuse_cloned(pool, volumes, what)
    _mark(database, image_id, what, with_parts=with_parts)
    remove_volumes(database, pool, image_id)
    try:
        with database.session() as session:
            image = session.get(Image, image_id, with_for_update=True)
            if image is not None:
                if with_parts:
                    _delete_parts(session, image)
                session.delete(image)
    except IntegrityError as exc:
        raise WrongState(what, "a profile has just begun to use it", "remove that profile, too") from exc


def _drop_failed(session: Session, name: str) -> None:
    query = select(Image).where(Image.name == name, Image.state == ImageState.FAILED.value)
    image = session.execute(query.with_for_update()).scalar_one_or_none()
    if image is not None and not image.volumes:
        session.delete(image)
        session.flush()


def _refuse_used(session: Session, image: Image, what: str, with_parts: bool) -> None:
    users = session.execute(select(Profile).where(Profile.image_id == image.id).order_by(Profile.name))
    left = [user.name for user in users.scalars() if not (with_parts and _came_with(user, image))]
    if left:
        why = f"it is used by profile {', '.join(left[:20])}"
        raise WrongState(what, why, "change or delete the profile first")


def _came_with(profile: Profile, image: Image) -> bool:
    return profile.name == image.name and profile.profile_type == OVA


def _refuse_cloned(pool: StoragePool, volumes: Sequence[str], what: str) -> None:
    clones = [
        clone
        for volume in volumes
        if pool.volume_or_none(volume) is not None
        for snapshot in pool.list_snapshots(volume)
        for clone in snapshot.children
    ]
    if clones:
        listed = ", ".join(sorted(clones)[:20])
        raise WrongState(
            what, f"disks were cloned from it: {listed}", "remove those VMs first, or flatten their volumes"
        )


def _mark(database: Database, image_id: int, what: str, *, with_parts: bool) -> None:
    """From here on nobody begins to use it: profiles and plans look at the state."""
    with database.session() as session:
        image = session.get(Image, image_id, with_for_update=True)
        if image is None or image.state == ImageState.IMPORTING:
            return
        _refuse_used(session, image, what, with_parts)
        image.state = ImageState.FAILED.value
        image.error = {
            "kind": "wrong-state",
            "what": what,
            "why": "its removal has begun, and was interrupted",
            "hint": f"remove it again: pvc provisioner image delete {image.name}",
        }


def _delete_parts(session: Session, image: Image) -> None:
    """The profile, and the system template unless another profile uses it."""
    profile = session.execute(select(Profile).where(Profile.name == image.name)).scalar_one_or_none()
    if profile is None or profile.image_id != image.id or not _came_with(profile, image):
        return
    template = session.get(SystemTemplate, profile.system_template_id)
    session.delete(profile)
    session.flush()
    users = select(Profile.id).where(Profile.system_template_id == template.id).limit(1)
    if template.name == image.name and session.execute(users).first() is None:
        session.delete(template)
    session.flush()


def _remove_volume(pool: StoragePool, volume: str) -> None:
    for snapshot in pool.list_snapshots(volume):
        if snapshot.protected:
            pool.unprotect_snapshot(volume, snapshot.name)
    pool.delete_volume(volume, missing_ok=True)
