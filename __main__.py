"""``python -m fedclip`` is the ``fedclip`` command."""

from .cli import main

if __name__ == "__main__":
    main()
