"""What strangers' images hold, read without trusting a byte of it; no file, network, database or process.

`OvaReader` (ova.py) reads an archive in one pass, `parse_ovf` (ovf.py) its description, `offer_hardware`
(hardware.py) says what such a VM gets here, `inspect_image` (formats.py) looks at the head of a disk image of
a given format, `StreamOptimizedDecoder` (streamoptimized.py) turns a VMDK stream into raw data. All raise
WrongInput, and nothing else, for input that is wrong. See docs/images.md.
"""
