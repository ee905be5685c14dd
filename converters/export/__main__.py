"""`python -m converters.export DST [OUT]`: the same as `octograin export DST [OUT] --to rlds`."""

from converters.export.rlds_export import main

if __name__ == "__main__":
    main()
