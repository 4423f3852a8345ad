"""A builder that installs nothing: the VM is defined and gets its disks, blank or cloned as the plan says."""

from vmbuilder import VMBuilder


class VMBuilderScript(VMBuilder):
    """A defined VM with blank disks.

    For VMs that are installed by other means, such as from the network or by hand on the console, and as the
    shortest example of a builder script. Disks for which the storage template names a source volume become
    its clones.
    """

    api_version = 1
    arguments = ()

    def prepare(self) -> None:
        """Make the volumes; nothing is put on them."""
        for volume in self.volumes:
            volume.create()
