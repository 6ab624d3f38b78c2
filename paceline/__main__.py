"""`python -m paceline`: the command line, where no script of that name is on the path."""

from paceline.cli.app import app

if __name__ == "__main__":
    app(prog_name="paceline")
