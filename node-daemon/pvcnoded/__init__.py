"""The agent on every hypervisor."""
