"""What scripts written for PVC 1.0 import, on top of vmbuilder. New scripts import vmbuilder itself."""
