"""`python -m converters.rlds SRC DST`: the same as `octograin convert SRC DST`."""

from converters.job.convert_command import main

if __name__ == "__main__":
    main()
