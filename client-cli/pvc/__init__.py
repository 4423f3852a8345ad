"""Command-line client of the PVC hypervisor provisioner: a thin layer over its REST API."""
