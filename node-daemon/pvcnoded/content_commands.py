"""The content of volumes, to and from the API: commands that open a transfer."""

from collections.abc import Mapping

from pvccommon.models import Json
from pvccommon.storage import get_pool
from pvccommon.storage.faults import in_use
from pvccommon.storage.pool import StoragePool, check_fits
from pvccommon.transfer import Channel, Receiver, Sender
from pvcnoded.command import Verbs
from pvcnoded.transfers import Transfers
from pvcnoded.volume_commands import describe_volume, require_space


class ContentCommands:
    """Uploads and downloads of raw content."""

    def __init__(self, pools: Mapping[str, StoragePool], transfers: Transfers) -> None:
        self._pools = pools
        self._transfers = transfers

    def verbs(self) -> Verbs:
        return {"volume.upload": self.upload_volume, "volume.download": self.download_volume}

    def upload_volume(self, arguments: Json) -> Json:
        """{pool, volume, size_bytes, overwrite} -> {offer}; the transfer's result is {volume}.

        A new volume appears when everything has come. One that is overwritten has mixed content meanwhile.
        """
        pool, name = get_pool(self._pools, arguments["pool"]), arguments["volume"]
        size_bytes, overwrite = int(arguments["size_bytes"]), bool(arguments["overwrite"])
        what = f"upload volume {pool.describe(name)}"
        if overwrite:
            require_room(pool, name, size_bytes, what)
        else:
            require_space(pool, what, size_bytes, force=True)

        def serve(channel: Channel) -> Json:
            store = pool.write_stream if overwrite else pool.import_stream
            return {"volume": describe_volume(pool, store(name, Receiver(channel), size_bytes))}

        return {"offer": self._transfers.offer(what, serve)}

    def download_volume(self, arguments: Json) -> Json:
        """{pool, volume} -> {offer, size_bytes}."""
        pool, name = get_pool(self._pools, arguments["pool"]), arguments["volume"]
        volume = pool.stat_volume(name)

        def serve(channel: Channel) -> Json:
            sender = Sender(channel)
            for piece in pool.export_stream(name):
                sender.write(piece)
            sender.finish()
            return {}

        offer = self._transfers.offer(f"download volume {pool.describe(name)}", serve)
        return {"offer": offer, "size_bytes": volume.size_bytes}


def require_room(pool: StoragePool, name: str, size_bytes: int, what: str) -> None:
    """Raises WrongInput when content does not fit into a volume, Busy while that is open."""
    check_fits(what, size_bytes, pool.stat_volume(name).size_bytes)
    if pool.is_open(name):
        raise in_use(what)
