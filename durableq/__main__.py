"""``python -m durableq``."""

import sys


def main() -> None:
    try:
        from durableq.cli import app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("the commands need typer: pip install 'durableq[cli]'")
    app(prog_name="durableq")


if __name__ == "__main__":
    main()
