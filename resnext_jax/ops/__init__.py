"""Pure functions of arrays: no modules, no config, no platform."""
