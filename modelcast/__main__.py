"""`python -m modelcast` is the `modelcast` command."""

from modelcast.cli import main

if __name__ == "__main__":
    main()
