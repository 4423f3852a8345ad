"""The box a builder script runs in: root of its own user namespace, nothing of the hypervisor's."""
