"""Makes `python3 -m pvc` the same program as `pvc`."""

from pvc.main import main

if __name__ == "__main__":
    main()
