"""A builder for tests: two disks with file systems, and files on both."""

import os

from vmbuilder import VMBuilder

TARGET = "/tmp/target"
PART_BYTES = 24 * 1024 * 1024


class VMBuilderScript(VMBuilder):
    """Writes enough for a disk to notice, one half before "half" is said, one after."""

    api_version = 1

    def prepare(self) -> None:
        self.volumes.create()
        self.volumes.format()
        self.volumes.mount(TARGET)

    def install(self) -> None:
        self.write("first")
        self.progress("half", 50)
        self.write("second")

    def cleanup(self) -> None:
        self.volumes.release()

    def write(self, name: str) -> None:
        for directory in (TARGET, f"{TARGET}/srv"):
            with open(f"{directory}/{name}", "wb") as file:
                file.write(os.urandom(PART_BYTES))
                file.flush()
                os.fsync(file.fileno())
