"""`python -m octograin VERB`: the command `octograin`, where it is not on the PATH."""

from octograin.cli import main

if __name__ == "__main__":
    main()
