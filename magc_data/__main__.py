"""`python -m magc_data` is `magc-data`."""

from magc_data.cli import main

if __name__ == "__main__":
    main()
