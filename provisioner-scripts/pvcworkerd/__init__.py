"""What scripts written for PVC 1.0 import of the old worker."""
