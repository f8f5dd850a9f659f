"""Says what is missing of the system before an environment is made, with the line that installs it."""

import sys

if sys.version_info < (3, 11):
    sys.exit(
        f"modelcast needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}.\n"
        "  → Name a newer one: make PYTHON=/path/to/python3.12 …   (Debian, Ubuntu: apt-get install python3.11)"
    )
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    sys.exit(
        f"Python's venv module is not complete on this machine ({sys.executable}).\n"
        f"  → Install it: apt-get install {package}   (as root, or with sudo)"
    )
