"""Plain data: one file per experiment over the base recipes of `common`."""
