"""Generated from the .proto files beside this one (hatch_build.py)."""
