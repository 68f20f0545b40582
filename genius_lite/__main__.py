"""`python -m genius_lite`, which is what launchers of several processes start."""

from genius_lite.cli import main

if __name__ == "__main__":
    main()
